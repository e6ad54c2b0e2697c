"""Everybody who trains autoencoders here, each in a process (and its own environment): `python -m benchmarks.peers`.

Nothing in this package imports Seamark except `with_seamark`, so that it runs in the environments of the others.
"""
