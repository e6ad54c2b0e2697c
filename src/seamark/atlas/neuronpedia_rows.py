"""Lines of Neuronpedia's exports as rows of an atlas; see `neuronpedia.py` for what is carried."""

from __future__ import annotations

import json
from array import array
from itertools import pairwise
from typing import Any, NamedTuple

from seamark.atlas.importing import is_number, is_storable, parse_json
from seamark.atlas.records import ContextKind, Half, Histogram, State
from seamark.atlas.rows import ExplanationRow, FeatureRow
from seamark.errors import FormatError
from seamark.explain.taxonomy import Tag

MAX_TOKENS = 100_000
"""Of a text; more is no text."""
LARGEST = 3e38
"""Activations are kept in float32."""
MOST = 2**53
"""Counts above it are no counts."""
LEVELS = 10


class Kind(NamedTuple):
    """Where among a feature's texts one belongs."""

    kind: ContextKind
    level: int
    half: Half


class Text(NamedTuple):
    """A text on its way into the atlas, small: many wait for their rank."""

    peak: float
    order: int
    name: str
    source: str
    tokens: str
    values: array[float]


def feature_row(latent: int, row: dict[str, Any]) -> FeatureRow:
    """What a line of `features` says."""
    share, largest = row.get("frac_nonzero"), row.get("maxActApprox")
    peak = float(largest) if is_number(largest) and largest > 0 else None  # 0 is the default
    known = is_number(share) and 0 <= share <= 1 and (share > 0 or peak is None)
    histogram = _histogram(row.get("freq_hist_data_bar_values"), row.get("freq_hist_data_bar_heights"))
    return FeatureRow(
        latent=latent, share=float(share) if known and share is not None else None, max=peak, histogram=histogram,
        firings=sum(histogram.counts) if histogram else None,
        promoted=_strings(row.get("pos_str")), suppressed=_strings(row.get("neg_str")),
    )  # fmt: skip


def _strings(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and value and all(isinstance(v, str) for v in value) else None


def _histogram(middles: Any, heights: Any) -> Histogram | None:
    """Bins from their middles, where they are equally wide (to the rounding of the files) and hold whole counts."""
    if not (isinstance(middles, list) and isinstance(heights, list) and len(middles) == len(heights) >= 2):
        return None
    if not all(map(is_number, (*middles, *heights))) or any(h < 0 or h != int(h) for h in heights):
        return None
    width = (middles[-1] - middles[0]) / (len(middles) - 1)
    if width <= 0 or any(abs(b - a - width) > 0.002 + 0.01 * width
                         for a, b in pairwise(middles)):  # fmt: skip
        return None
    edges = [middles[0] + (i - 0.5) * width for i in range(len(middles) + 1)]
    return Histogram(edges=tuple(edges), counts=tuple(int(h) for h in heights)) if sum(heights) < MOST else None


def explanation_row(
    row: dict[str, Any], feature: int, run: str, language: str
) -> tuple[ExplanationRow, float | None] | str:
    """The explanation with its score, or what is wrong with it."""
    text, kept = row.get("description"), kept_in(row.get("notes"))
    if not isinstance(text, str) or not is_storable(text):
        return "description: no text that can be kept"
    state: State = kept["state"] if kept.get("state") in ("masked", "null") else "text"
    if state == "text" and not text.strip():
        return "description: empty"
    score = kept.get("score", row.get("scoreV1"))
    if not is_number(score) or not -1 <= score <= 1 or (score == 0 and "score" not in kept):
        score = None
    rating = kept.get("rating") if kept.get("rating") in range(1, 6) else None
    return ExplanationRow(
        feature=feature, text=None if state == "null" else text, run=run, method="imported", state=state,
        reason="none could be given" if state == "null" else "", model=_text(row.get("explanationModelName")),
        prompt_version=_text(kept.get("prompt_version", row.get("typeName"))), tags=_tags(kept.get("tags")),
        language=_text(kept.get("language")) or language, rating=None if rating is None else int(rating),
        rating_reason=_text(kept.get("rating_reason")),
    ), None if score is None else float(score)  # fmt: skip


def _tags(value: Any) -> tuple[Tag, ...]:
    pairs = value if isinstance(value, list) else []
    tags = [Tag(p[0], p[1]) for p in pairs if isinstance(p, list) and len(p) == 2 and isinstance(p[0], str)
            and p[0] and (p[1] is None or isinstance(p[1], str))]  # fmt: skip
    return tuple(dict.fromkeys(tags))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def kept_in(notes: Any) -> dict[str, Any]:
    """What a Seamark put into a column of free text; empty where it is something else."""
    if not isinstance(notes, str) or not notes.startswith('{"seamark":'):
        return {}
    try:
        found = parse_json(notes.encode("utf-8", "replace"))["seamark"]
    except (FormatError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def activation(row: dict[str, Any], largest: float | None, order: int) -> tuple[Kind, Text] | str:
    """A text and where it belongs, or what is wrong with it."""
    tokens, values = row.get("tokens"), row.get("values")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or not tokens:
        return "tokens: no list of texts"
    if not isinstance(values, list) or len(values) != len(tokens) or not all(map(is_number, values)):
        return "values: not a number for each token"
    if len(tokens) > MAX_TOKENS:
        return f"tokens: more than {MAX_TOKENS:,}"
    peak = float(max(values))
    if max(peak, -min(values)) > LARGEST:
        return "values: too large"
    kept = kept_in(row.get("dataIndex"))
    name = _text(kept.get("name")) or _text(row.get("id")) or f"line {-order + 1}"
    text = Text(peak, order, name, _text(row.get("dataSource")), json.dumps(tokens), array("d", values))
    return _kind(kept, row.get("binMin"), peak, largest), text


def _kind(kept: dict[str, Any], low: Any, peak: float, largest: float | None) -> Kind:
    kind, level, half = kept.get("kind"), kept.get("level"), kept.get("half")
    if kind in ("top", "level", "silent", "near_miss") and isinstance(level, int) and 0 <= level <= LEVELS:
        return Kind(kind, level, half if half in ("explain", "simulate") else "")
    if peak <= 0:
        return Kind("silent", 0, "")
    if is_number(low) and low >= 0 and largest:  # drawn from an interval of activations
        return Kind("level", min(LEVELS, max(1, -int(-LEVELS * peak // largest))), "")
    return Kind("top", 0, "")
