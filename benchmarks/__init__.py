"""What Seamark claims about itself, measured: `python -m benchmarks NAME` or `all`; results in `benchmarks/results`."""
