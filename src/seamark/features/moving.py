"""Latents moved at a hookpoint: a change of activations by a multiple of decoder directions.

What the autoencoder does not explain stays: h' = h + (z' − z) · W_dec in the hookpoint's units, never the
reconstruction (keeping the error is also what CC-Delta, arXiv 2602.12418, asks for). Only firings count as z, as in
every score: a negative value that `topk` keeps is no firing and is left alone. A position whose latents stay as they
are keeps its activation bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seamark.errors import ConfigError
from seamark.model.batching import Batch
from seamark.model.reading import Change
from seamark.sae import SparseAutoencoder
from seamark.sae.autoencoder import ENCODE_ROWS
from seamark.text.rendering import Rendered

Action = Literal["add", "set", "scale", "ablate"]
Span = tuple[int, int]
Where = Literal["response", "prompt", "all"] | tuple[Span, ...]
"""Which tokens: those of the response or the prompt, all but padding, or half-open ranges of places in the text
(counted from 0 with the template's tokens, without padding)."""


@dataclass(frozen=True)
class Move:
    """What becomes of one latent. Moves of the same latent follow one another."""

    latent: int
    action: Action
    value: float
    """`add`: added to z, firing or not; `set`: what z becomes; `scale`: factor of z; `ablate`: not used. In the
    autoencoder's own units, not in Q_f."""
    where: Where = "response"


def moving(
    parts: Sequence[tuple[SparseAutoencoder, Sequence[Move]]], texts: Sequence[Rendered] | None = None
) -> Change:  # fmt: skip
    """A change for `apply_at` that makes all moves of autoencoders of one hookpoint.

    Each autoencoder reads the activations as the model gave them, so their order does not matter.

    Args:
        parts: autoencoders with what to do with their latents.
        texts: what batches hold rows of; needed where `where` is "response" or "prompt", but in `generate` (then the
            prompt is what was given, and the response what is new). What is generated behind a text counts as its
            response.

    Raises:
        ConfigError: while a batch is read, where `texts` are missing or others than those in the batch.
    """

    def change(h_BTD: Tensor, batch: Batch) -> Tensor:
        steps = [step for sae, moves in parts if (step := _steps(sae, moves, h_BTD, batch, texts)) is not None]
        if not steps:
            return h_BTD
        moved_BT = torch.zeros(h_BTD.shape[:2], dtype=torch.bool, device=h_BTD.device)
        step_BTD = torch.zeros(h_BTD.shape, dtype=steps[0][1].dtype, device=h_BTD.device)
        for at, step_ND in steps:
            moved_BT[at] = True
            step_BTD[at] += step_ND
        out_BTD = h_BTD.clone()
        out_BTD[moved_BT] = (h_BTD[moved_BT] + step_BTD[moved_BT]).to(h_BTD.dtype)
        return out_BTD

    return change


def _steps(
    sae: SparseAutoencoder, moves: Sequence[Move], h_BTD: Tensor, batch: Batch, texts: Sequence[Rendered] | None
) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
    """(row, column) of the positions that one autoencoder's moves change, and what is added there [n, d]."""
    inside = {where: _inside(batch, where, texts).to(h_BTD.device) for where in {m.where for m in moves}}
    some_BT = torch.zeros(h_BTD.shape[:2], dtype=torch.bool, device=h_BTD.device)
    for at_BT in inside.values():
        some_BT |= at_BT
    if not bool(some_BT.any()):
        return None
    delta_NF = _deltas(sae, moves, h_BTD[some_BT], {where: at_BT[some_BT] for where, at_BT in inside.items()})
    changed_N = (delta_NF != 0).any(1)
    if not bool(changed_N.any()):
        return None
    row, column = (index[changed_N.to(h_BTD.device)] for index in some_BT.nonzero(as_tuple=True))
    return (row, column), _step(sae, moves, h_BTD[row, column], delta_NF[changed_N])


def _latents(moves: Sequence[Move]) -> list[int]:
    """Each latent once: the columns of what is computed."""
    return list(dict.fromkeys(m.latent for m in moves))


def _deltas(
    sae: SparseAutoencoder, moves: Sequence[Move], h_ND: Tensor, inside: dict[Where, Tensor]
) -> Tensor:  # fmt: skip
    """z' − z of each latent of `moves` at n positions, [n, latents], on the autoencoder's device; exactly 0 where
    nothing changes."""
    latents = _latents(moves)
    weight = sae.W_dec
    fires_NF = weight.new_zeros(len(h_ND), len(latents))
    if any(m.action != "add" for m in moves):
        fires_NF = firings_of(sae, latents, h_ND.detach().to(weight.device, weight.dtype))
    delta_NF = torch.zeros_like(fires_NF)
    for m in moves:
        column = latents.index(m.latent)
        z_N, delta_N = fires_NF[:, column], delta_NF[:, column]
        if m.action == "add":
            new_N = delta_N + m.value
        elif m.action == "set":
            new_N = m.value - z_N
        elif m.action == "scale":
            new_N = delta_N * m.value + z_N * (m.value - 1.0)
        else:
            new_N = -z_N
        delta_NF[:, column] = torch.where(inside[m.where].to(delta_N.device), new_N, delta_N)
    return delta_NF


@torch.no_grad()
def firings_of(sae: SparseAutoencoder, latents: Sequence[int], h_ND: Tensor) -> Tensor:
    """max(z, 0) of some latents, [n, latents]: as the autoencoder selects them among all."""
    column_of = torch.full((sae.config.d_sae,), -1, dtype=torch.int64, device=h_ND.device)
    column_of[torch.as_tensor(latents, device=h_ND.device)] = torch.arange(len(latents), device=h_ND.device)
    parts = []
    for rows_ND in h_ND.split(ENCODE_ROWS):
        z = sae.encode(rows_ND)
        column, value = column_of[z.indices.flatten().long()], z.values.flatten()
        kept = (column >= 0) & (value > 0)
        out_NF = rows_ND.new_zeros(len(rows_ND), len(latents))
        out_NF[z.rows()[kept], column[kept]] = value[kept]
        parts.append(out_NF)
    return torch.cat(parts)


def _step(sae: SparseAutoencoder, moves: Sequence[Move], h_ND: Tensor, delta_NF: Tensor) -> Tensor:
    """What is added to the activations [n, d], in the hookpoint's units, on the activations' device."""
    directions_FD = sae.W_dec.detach()[torch.as_tensor(_latents(moves), device=sae.W_dec.device)]
    step_ND = (delta_NF @ directions_FD).to(h_ND.device)
    if sae.config.normalize == "layer_norm":
        step_ND = step_ND * (h_ND.to(step_ND.dtype).std(-1, keepdim=True) + sae.config.eps)
    return step_ND


def _inside(batch: Batch, where: Where, texts: Sequence[Rendered] | None) -> Tensor:
    """Which tokens of a batch are meant, [B, T]."""
    place_BT = batch.positions
    if where == "all":
        return place_BT >= 0
    if not isinstance(where, str):
        found = torch.zeros_like(place_BT, dtype=torch.bool)
        for start, end in where:
            found |= (place_BT >= start) & (place_BT < end)
        return found
    if texts is None:
        return _generated(batch, place_BT, where)
    _check_rows(batch, texts)
    kept = [texts[row] for row in batch.rows]
    spans = [r.response_span if where == "response" else r.prompt_span for r in kept]
    start_B, end_B = (torch.as_tensor(list(ends), device=place_BT.device)[:, None] for ends in zip(*spans, strict=True))
    found = (place_BT >= start_B) & (place_BT < end_B)
    if where == "response":
        found |= place_BT >= torch.as_tensor([len(r) for r in kept], device=place_BT.device)[:, None]
    return found


def _generated(batch: Batch, place_BT: Tensor, where: Literal["response", "prompt"]) -> Tensor:
    if batch.given is None:
        raise ConfigError(f"which tokens are the {where} is not known outside of generate",
                          fix="Give the texts, or name spans of tokens, or take all")  # fmt: skip
    answer_BT = place_BT >= batch.given[:, None]
    return answer_BT if where == "response" else (place_BT >= 0) & ~answer_BT


def _check_rows(batch: Batch, texts: Sequence[Rendered]) -> None:
    """Raise `ConfigError` unless the batch's rows are the texts, in their order."""
    if max(batch.rows) >= len(texts):
        raise ConfigError(
            f"a batch of {len(batch.rows)} rows, and {len(texts)} texts", fix="Give the texts of each call"
        )
    for b, row in enumerate(batch.rows):
        if batch.before is not None and int(batch.before[b]):
            continue  # the tokens in the cache were looked at before
        ids = batch.input_ids[b][batch.attention_mask[b] != 0].cpu()
        known = torch.from_numpy(texts[row].input_ids.astype("int64"))
        n = min(len(ids), len(known)) if batch.before is not None else len(known)  # a call may be of a part
        if not torch.equal(ids[:n], known[:n]) or (batch.before is None and len(ids) != n):
            raise ConfigError(f"row {b} of the batch is another text than {texts[row].text_id!r}",
                              fix="Give the texts in the order of the rows")  # fmt: skip
