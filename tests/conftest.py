"""Settings for all tests: no network, and `from tiny import …` works everywhere (this folder is on the path)."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
