"""The scan's job done in several ways, each run in a process of its own: `python -m benchmarks.scans JOB.json`."""
