"""`python -m benchmarks.atlases JOB.json`: one stage; prints what was measured as JSON, last."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.atlases import building, served
from benchmarks.atlases.job import Job

STAGES = {"files": building.files, "memory": building.memory, "build": building.build, "floor": building.floor,
          "layout": building.layout, "search": served.search, "pages": served.pages}  # fmt: skip


def main(path: str) -> dict[str, Any]:
    job = Job.read(path)
    return STAGES[job.stage](job)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)
