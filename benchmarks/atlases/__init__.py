"""The atlas at 100,000 features: what the stages of `benchmarks/atlas.py` do, each in a process of its own."""
