"""Stages of the benchmark `explain`, each run in a process of its own: `python -m benchmarks.explaining JOB.json`."""
