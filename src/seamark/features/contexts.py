"""Texts of a scan token by token, with a feature's activation at each: what people and explainers look at.

Activations come from the shards of a scan (`TokenTexts`) or from a second reading of single texts (`TextsReadAgain`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seamark.features.accumulate import RESPONSE, SCORING, Firings
from seamark.features.arrays import read_table
from seamark.features.config import ScanConfig
from seamark.features.gather import Positions, gather
from seamark.features.token_latents import TokenLatents
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.sae import SparseAutoencoder
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

OPEN_PARTS, OPEN_TEXTS = 32, 1024
"""Parts whose texts are held in memory at once; texts that are held token by token."""
BATCH_TOKENS = 2048
TOKENS_AT_ONCE = 1 << 18
"""Tokens of the texts that are read again and lie in memory together, about those of one part."""

Wanted = Mapping[int, Mapping[str, Sequence[int]]]
"""{row of a text: {sae id: latents}}."""
Truth = dict[tuple[str, int], tuple[float, ...]]
"""{(sae id, latent): its positive activation at each token shown}."""


@dataclass(frozen=True)
class Context:
    """A text, token by token, and where a feature fires in it."""

    text_id: str
    pair_id: str | None
    """None: a plain text, of no pair and no side."""
    side: str | None
    group: str
    tokens: tuple[str, ...]
    """Pieces of the text in order, white space included: joined, they are the text shown."""
    activations: tuple[float, ...]
    """The feature at each token, in the autoencoder's units; 0 where it is silent or was not read."""
    scoring: tuple[bool, ...]
    """Which tokens are scoring positions."""
    q: float | None
    """Q_f, the activation of full strength; None: not available (fewer than 10 firings)."""
    read: tuple[bool, ...] = ()
    """Which tokens were read, so that 0 there is the truth; empty: not told."""
    prompt: str = ""
    """Hash of the prompt that a text of a pair answers; empty: a plain text, or not told."""

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
    """Token positions shown, ascending."""
    tokens: tuple[str, ...]
    scoring: tuple[bool, ...]
    read: tuple[bool, ...]
    """Which tokens were read."""


class ShownTexts:
    """Reads the texts of a scan's parts. `prompts`: show a text's prompt too."""

    def __init__(self, parts: Sequence[Path], starts: NDArray[np.int64], *, prompts: bool) -> None:
        self.parts, self.starts, self.prompts = parts, starts, prompts
        self._rendered = lru_cache(OPEN_PARTS)(self._load_rendered)

    def _load_rendered(self, part: int) -> pa.Table:
        return read_table(self.parts[part] / "rendered.parquet")

    def place(self, row: int) -> tuple[int, int]:
        """(part, row in it)."""
        part = int(np.searchsorted(self.starts, row, "right")) - 1
        return part, row - int(self.starts[part])

    def rendered(self, row: int) -> Rendered:
        """Text `row` as the model was shown it."""
        part, inside = self.place(row)
        return _as_rendered(self._rendered(part).slice(inside, 1).to_pylist()[0])

    def shown(self, row: int, text: Rendered, position: Positions, flags: NDArray[np.uint8]) -> TokenText:
        """The tokens of a text, special ones left out; `position` [n] was read, with `flags` [n]."""
        start, end = text.response_span
        if self.prompts and text.prompt_span[0] < text.prompt_span[1]:
            start = text.prompt_span[0]
        at = tuple((start + np.flatnonzero(~text.special[start:end])).tolist())
        tokens = token_strings(text.text, text.offsets[:, 0].tolist(), text.offsets[:, 1].tolist(), at)
        read, scoring = set(position.tolist()), set(position[(flags & SCORING) != 0].tolist())
        return TokenText(row, at, tokens, tuple(t in scoring for t in at), tuple(t in read for t in at))


class TokenTexts(ShownTexts):
    """Texts with the token-level latents that a scan kept."""

    def __init__(self, parts: Sequence[Path], starts: NDArray[np.int64], *, prompts: bool) -> None:
        super().__init__(parts, starts, prompts=prompts)
        self._latents = lru_cache(OPEN_PARTS)(self._load_latents)
        self.read = lru_cache(OPEN_TEXTS)(self._read)
        """(row): the tokens of a text, special ones left out."""

    def _load_latents(self, part: int) -> TokenLatents:
        return TokenLatents(self.parts[part])

    def _read(self, row: int) -> TokenText:
        part, inside = self.place(row)
        stored = self._latents(part).positions(inside)
        return self.shown(row, self.rendered(row), stored.position, stored.flags)

    def activations(self, text: TokenText, sae_id: str, weights: Mapping[int, float]) -> tuple[float, ...]:
        """Σ weight · max(z, 0) over the latents in `weights`, at each token of `text`."""
        part, inside = self.place(text.row)
        stored, firings = self._latents(part).read(inside, sae_id)
        place = np.repeat(stored.position, np.diff(firings.bounds))
        mine = np.isin(firings.latent, list(weights))
        values: dict[int, float] = {}
        entries = zip(place[mine].tolist(), firings.latent[mine].tolist(), firings.value[mine].tolist(), strict=True)
        for position, latent, value in entries:
            values[position] = values.get(position, 0.0) + weights[latent] * value
        return tuple(values.get(t, 0.0) for t in text.at)

    def truth(self, wanted: Wanted) -> Iterator[tuple[TokenText, Truth]]:
        """Each text wanted, and the activations of the features wanted of it."""
        for row in sorted(wanted):
            text, found = self.read(row), Truth()
            part, inside = self.place(row)
            for sae_id, latents in wanted[row].items():
                stored, firings = self._latents(part).read(inside, sae_id)
                found |= _at_tokens(text, stored.position, sae_id, firings, latents)
            yield text, found


class TextsReadAgain(ShownTexts):
    """Texts of a scan that kept no latents of single tokens: those wanted go through the model once more.

    Args:
        parts, starts: as of `TokenTexts`.
        model, suite: those of the scan; {sae id: autoencoder}.
        config: the scan's, its precision the one it had come to.
    """

    def __init__(
        self, parts: Sequence[Path], starts: NDArray[np.int64], model: HookedModel,
        suite: Mapping[str, SparseAutoencoder], config: ScanConfig,
    ) -> None:  # fmt: skip
        super().__init__(parts, starts, prompts=config.scope == "all")
        self.model, self.suite, self.config = model, suite, config
        self.hookpoints = sorted({sae.config.hookpoint for sae in suite.values()})
        for sae in suite.values():
            sae.to(model.device)

    def truth(self, wanted: Wanted) -> Iterator[tuple[TokenText, Truth]]:
        """Each text wanted, and the activations of the features wanted of it; every text is read once.

        Raises:
            DataError: NaN or infinite activations.
        """
        held: dict[int, Rendered] = {}
        tokens = 0
        for row in sorted(wanted):
            held[row] = self.rendered(row)
            tokens += len(held[row])
            if tokens >= TOKENS_AT_ONCE:
                yield from self._read(held, wanted)
                held, tokens = {}, 0
        yield from self._read(held, wanted)

    def _read(self, held: Mapping[int, Rendered], wanted: Wanted) -> Iterator[tuple[TokenText, Truth]]:
        rows, texts = list(held), list(held.values())
        stored = [read_positions(text, self.config) for text in texts]
        for batch in plan_batches([len(t) for t in texts], self.config.batch_tokens or BATCH_TOKENS):
            chosen = [stored[i][0] for i in batch]
            got = gather(self.model, texts, batch, chosen, self.hookpoints, precision=self.config.precision)
            firings = {i: Firings.of(s.encode(got.activations[s.config.hookpoint])) for i, s in self.suite.items()}
            end = 0
            for i, position in zip(batch, chosen, strict=True):
                start, end, row = end, end + len(position), rows[i]
                text, found = self.shown(row, texts[i], *stored[i]), Truth()
                for sae_id, latents in wanted[row].items():
                    found |= _at_tokens(text, position, sae_id, _part(firings[sae_id], start, end), latents)
                yield text, found


def read_positions(text: Rendered, config: ScanConfig) -> tuple[Positions, NDArray[np.uint8]]:
    """The positions of a text that a scan reads, ascending [n], and what each is: SCORING, RESPONSE or both [n]."""
    stored = scoring = positions(text, config.positions, config.rule, config.scope)
    if config.context_positions == "tokens":
        stored = np.union1d(scoring, positions(text, "tokens")).astype(np.int32)
    start, end = text.response_span
    flags = np.isin(stored, scoring) * SCORING + ((stored >= start) & (stored < end)) * RESPONSE
    return stored, flags.astype(np.uint8)


def _as_rendered(row: Mapping[str, Any]) -> Rendered:
    """A row of `rendered.parquet` as the renderer had made it."""
    offsets = np.stack([np.asarray(row["start"], np.int32), np.asarray(row["end"], np.int32)], axis=1)
    (prompt_start, prompt_end), (start, end) = row["prompt_span"], row["response_span"]
    return Rendered(
        row["text_id"], np.asarray(row["input_ids"], np.int32), offsets, row["text"], (prompt_start, prompt_end),
        (start, end), np.asarray(row["special"], np.bool_),
    )  # fmt: skip


def _part(firings: Firings, start: int, end: int) -> Firings:
    """Of positions start:end only."""
    bounds = firings.bounds[start : end + 1]
    inside = slice(int(bounds[0]), int(bounds[-1]))
    return Firings(bounds - bounds[0], firings.latent[inside], firings.value[inside])


def _at_tokens(text: TokenText, position: Positions, sae_id: str, firings: Firings, latents: Sequence[int]) -> Truth:
    """Activations of `latents` at the tokens of `text`, from what fires at each `position` [n] of it."""
    column = {t: i for i, t in enumerate(text.at)}
    place = np.repeat(position, np.diff(firings.bounds))
    mine = np.isin(firings.latent, latents)
    found = {latent: [0.0] * len(column) for latent in latents}
    entries = zip(place[mine].tolist(), firings.latent[mine].tolist(), firings.value[mine].tolist(), strict=True)
    for t, latent, value in entries:
        if t in column:  # the paper's clause ends may lie in the template, which is not shown
            found[latent][column[t]] = value
    return {(sae_id, latent): tuple(values) for latent, values in found.items()}


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
