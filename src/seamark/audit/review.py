"""Reviewing pairs by hand: each with what a feature set says for and against its label, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import isfinite
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.sparse import csr_matrix, hstack

from seamark.errors import DataError
from seamark.features.contexts import ShownTexts, TextsReadAgain, TokenText
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.text.rendering import Rendered

SIDES = ("chosen", "rejected")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Contribution(NamedTuple):
    """What a feature adds: above 0 it speaks for a safe answer (of a token), or for the label (of a pair)."""

    feature: int
    """Its place in `ReviewedPair.features`."""
    value: float


class ReviewedFeature(_Value):
    """A feature of the set that fires in the pair."""

    sae: str
    latent: int
    sign: int
    """+1: fires on preferred answers; −1: on rejected ones."""
    why: str
    """Its label, or why it has its rating; may be empty."""


class ReviewedSide(_Value):
    """One answer, token by token."""

    tokens: tuple[str, ...]
    """Pieces of the text; joined, they are what is shown of it."""
    values: tuple[float, ...]
    """Σ sign · max(z, 0) over the set at each token: positive speaks for a safe answer."""
    scoring: tuple[bool, ...]
    """Scoring positions: over them the score is the mean."""
    contributions: tuple[tuple[Contribution, ...], ...]
    """Of each token what its value is made of, the largest first."""
    score: float | None
    """g(y), the answer's alignment score; None: it has no scoring position."""
    reward: float | None


class ReviewedPair(_Value):
    """A pair and the evidence."""

    id: str
    group: str
    prompt: str
    chosen: ReviewedSide
    rejected: ReviewedSide
    score: float | None
    """g(chosen) − g(rejected)."""
    margin: float | None
    """reward(chosen) − reward(rejected); None: the scan holds no rewards."""
    features: tuple[ReviewedFeature, ...]
    parts: tuple[Contribution, ...]
    """What each feature adds to `score`: those that speak most against the label first."""
    truncated: int
    """Tokens that the longer text lost at its beginning."""
    reason: str = ""
    """Why tokens have no values; empty where they have."""


class Review:
    """A scan's pairs in the light of a feature set.

    Args:
        scan: a scan of pairs.
        features: the set that speaks for and against.
        again: reads texts through the model once more, for scans that kept no latents of single tokens.

    Raises:
        DataError: a latent that the scan's autoencoder lacks.
        ConfigError: an autoencoder that the scan does not hold.
    """

    def __init__(self, scan: Scan, features: FeatureSet, again: TextsReadAgain | None = None) -> None:
        self.scan, self.features, self._again = scan, features, again
        self._latents: dict[str, list[int]] = {}
        for f in features.features:
            self._latents.setdefault(scan.sae_id(f.sae), []).append(f.latent)
        self._place = {(scan.sae_id(f.sae), f.latent): i for i, f in enumerate(features.features)}
        self._sign = np.asarray([f.sign for f in features.features], dtype=np.float64)
        self._texts = _shown_texts(scan)

    @cached_property
    def _parts(self) -> csr_matrix:
        """sign · mean activation over the scoring positions, [texts × features]."""
        columns = [self.scan.columns(sae, latents, "mean") for sae, latents in self._latents.items()]
        if not columns:
            return csr_matrix((len(self.scan.n_positions), 0))
        order = [self._place[sae, latent] for sae, latents in self._latents.items() for latent in latents]
        stacked = hstack(columns, format="csc")[:, np.argsort(order)]
        return stacked.multiply(self._sign[None, :]).tocsr()

    def pair(self, pair_id: str) -> ReviewedPair:
        """One pair. `DataError` where the scan holds none of that id."""
        if pair_id not in self.scan.rows_by_pair:
            raise DataError("no such pair in the scan", where=pair_id[:200])
        rows = self.scan.rows_by_pair[pair_id]
        about = [self.scan.texts.slice(row, 1).to_pylist()[0] for row in rows]
        found = [self._side(row, a) for row, a in zip(rows, about, strict=True)]
        (chosen, rejected), rendered = (side for side, _ in found), found[0][1]
        parts = np.asarray((self._parts[rows[0]] - self._parts[rows[1]]).todense()).ravel()
        known = [s.score for s in (chosen, rejected) if s.score is not None]
        parts = parts if len(known) == 2 else np.zeros_like(parts)
        order = [i for i in np.argsort(parts, kind="stable").tolist() if parts[i] != 0]
        margin = None if chosen.reward is None or rejected.reward is None else chosen.reward - rejected.reward
        return ReviewedPair(
            id=pair_id, group=about[0]["group"], prompt=_prompt(rendered), chosen=chosen, rejected=rejected,
            score=known[0] - known[1] if len(known) == 2 else None, margin=margin,
            features=tuple(ReviewedFeature(sae=self.scan.sae_id(f.sae), latent=f.latent, sign=f.sign,
                                           why=f.label or f.why) for f in self.features.features),
            parts=tuple(Contribution(i, float(parts[i])) for i in order),
            truncated=max(int(a["truncated"] or 0) for a in about), reason=self._reason,
        )  # fmt: skip

    @property
    def _reason(self) -> str:
        if self._again is not None or self.scan.manifest["choices"]["keep_tokens"]:
            return ""
        return "the scan kept no latents of single tokens"

    def _side(self, row: int, about: Mapping[str, object]) -> tuple[ReviewedSide, Rendered]:
        if self._reason:
            rendered = self._texts.rendered(row)
            text, by_feature = _response(rendered), dict[tuple[str, int], tuple[float, ...]]()
        else:
            source = self._again or self.scan.token_texts
            ((text, by_feature),) = source.truth({row: self._latents})
            rendered = source.rendered(row)
        contributions: list[list[Contribution]] = [[] for _ in text.tokens]
        for key, values in by_feature.items():
            feature = self._place[key]
            for token, z in enumerate(values):
                if z > 0:
                    contributions[token].append(Contribution(feature, float(self._sign[feature]) * z))
        known = len(self.features) > 0 and self.scan.n_positions[row] > 0
        score = float(self._parts[row].sum()) if known else None
        reward = about["reward"]
        return ReviewedSide(
            tokens=text.tokens, scoring=text.scoring, score=score,
            values=tuple(float(sum(c.value for c in at)) for at in contributions),
            contributions=tuple(tuple(sorted(at, key=lambda c: -abs(c.value))) for at in contributions),
            reward=float(reward) if isinstance(reward, float) and isfinite(reward) else None,
        ), rendered  # fmt: skip


def _shown_texts(scan: Scan) -> ShownTexts:
    return ShownTexts(scan.parts, scan.starts, prompts=scan.config["scope"] == "all")


def _prompt(text: Rendered) -> str:
    """The prompt's characters; what truncation dropped is not among them."""
    return _between(text, text.prompt_span)


def _response(text: Rendered) -> TokenText:
    """The response as one piece, where nothing is known of its tokens."""
    return TokenText(0, (0,), (_between(text, text.response_span),), (False,), (False,))


def _between(text: Rendered, span: tuple[int, int]) -> str:
    start, end = span
    inside = [i for i in range(start, end) if not text.special[i]]
    return text.text[text.offsets[inside[0], 0] : text.offsets[inside[-1], 1]] if inside else ""
