"""What an audit leaves, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seamark.pipelines.audit_report_options import AuditOptions
from seamark.pipelines.audit_report_price import Price
from seamark.pipelines.recipe import SaferRecipe


@dataclass(frozen=True)
class Audited:
    """Where the files of an audit lie, and what was not run."""

    recipe: SaferRecipe
    options: AuditOptions
    root: Path
    trained: bool
    """Whether the reward model was trained on these pairs."""
    data: Path
    scan: Path
    scores: Path
    findings: Path
    evidence: Path
    edits: Path
    sae: Path | None
    """None: the autoencoder was given."""
    features: Path | None
    no_features: str
    """Why there are none."""
    judged: Path | None
    sae_id: str
    prices: tuple[Price, ...]
    timings: Mapping[str, Mapping[str, float]]
