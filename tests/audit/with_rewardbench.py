"""Runs in an environment of its own, which has the package rewardbench: its sections from accuracies by subset.

Reads {subset: accuracy} from stdin, writes {"version", "counts", "sections", "scores"} to stdout.
"""

from __future__ import annotations

import json
import sys

import rewardbench
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.utils import calculate_scores_per_section

given = json.load(sys.stdin)
scores = [calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, metrics) for metrics in given]
result = {"version": rewardbench.__version__, "counts": EXAMPLE_COUNTS, "sections": SUBSET_MAPPING, "scores": scores}
sys.stdout.write("\n" + json.dumps(result) + "\n")
