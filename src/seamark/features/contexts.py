"""Texts of a scan token by token, with a feature's activation at each: what people and explainers look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from seamark.features.accumulate import SCORING
from seamark.features.shards import TokenShards, read_table


@dataclass(frozen=True)
class Context:
    """A text in which a feature fires, token by token."""

    text_id: str
    pair_id: str
    side: str
    group: str
    tokens: tuple[str, ...]
    """Pieces of the text in order, white space included: joined, they are the text shown."""
    activations: tuple[float, ...]
    """The feature at each token, in the autoencoder's units; 0 where it is silent or was not read."""
    scoring: tuple[bool, ...]
    """Which tokens are scoring positions."""
    q: float | None
    """Q_f, the activation of full strength; None: not available (fewer than 10 firings)."""

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def max_activation(self) -> float:
        return max(self.activations, default=0.0)


@dataclass(frozen=True)
class TokenScores:
    """What a feature set makes of each token of a text."""

    text_id: str
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    """Signed sum of the set's positive activations at each token: positive speaks for a safe answer."""
    scoring: tuple[bool, ...]
    """Which tokens are scoring positions, over which the text's score is the mean."""


@dataclass(frozen=True)
class TokenText:
    """The part of a text that is shown: its response, and its prompt where that was scored too."""

    row: int
    at: tuple[int, ...]
    """Token positions shown."""
    tokens: tuple[str, ...]
    scoring: tuple[bool, ...]


class TokenTexts:
    """Reads texts and token-level latents of a scan's folder."""

    def __init__(self, path: Path, *, prompts: bool) -> None:
        self.path, self.prompts = path, prompts
        self._shards = TokenShards(path / "tokens")

    @cached_property
    def _rendered(self) -> pa.Table:
        return read_table(self.path / "rendered.parquet")

    def read(self, row: int) -> TokenText:
        """The tokens of text `row`, special tokens left out."""
        rendered = self._rendered.slice(row, 1).to_pylist()[0]
        start, end = rendered["response_span"]
        if self.prompts and rendered["prompt_span"][0] < rendered["prompt_span"][1]:
            start = rendered["prompt_span"][0]
        at = tuple(t for t in range(start, end) if not rendered["special"][t])
        stored = self._shards.positions(row)
        scoring = set(stored.position[(stored.flags & SCORING) != 0].tolist())
        tokens = token_strings(rendered["text"], rendered["start"], rendered["end"], at)
        return TokenText(row, at, tokens, tuple(t in scoring for t in at))

    def activations(self, text: TokenText, sae_id: str, weights: Mapping[int, float]) -> tuple[float, ...]:
        """Σ weight · max(z, 0) over the latents in `weights`, at each token of `text`."""
        stored, firings = self._shards.read(text.row, sae_id)
        place = np.repeat(stored.position, np.diff(firings.bounds))
        mine = np.isin(firings.latent, list(weights))
        values: dict[int, float] = {}
        entries = zip(place[mine].tolist(), firings.latent[mine].tolist(), firings.value[mine].tolist(), strict=True)
        for position, latent, value in entries:
            values[position] = values.get(position, 0.0) + weights[latent] * value
        return tuple(values.get(t, 0.0) for t in text.at)


def token_strings(text: str, starts: list[int], ends: list[int], tokens: tuple[int, ...]) -> tuple[str, ...]:
    """The piece of `text` each token stands for, with the white space before it; no character comes twice."""
    pieces, last, before = [], 0, -2
    for t in tokens:
        if t != before + 1:
            last = max(last, starts[t])  # special tokens were left out here, and their text with them
        before, end = t, max(ends[t], last)
        pieces.append(text[last:end])
        last = end
    return tuple(pieces)
