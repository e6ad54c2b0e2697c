"""Any Hugging Face model: loading, hookpoints, reading and changing activations, reward models and their training.

Knows nothing of sparse autoencoders. Heavy imports (TRL) happen only in `training`.
"""
