"""Skip the lowest blocks of a model on texts whose activations are known.

Retraining only the upper blocks, or changing activations at one hookpoint again and again, reads the same texts through
the same lower blocks every time. A `BlockCache` holds what those blocks give for each text, once; inside
`cache.skipping(model)` they cost a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seamark.errors import FormatError, ModelError
from seamark.model.batching import collate, plan_batches
from seamark.model.calls import instance_has
from seamark.model.hookpoints import find_family, parse_hookpoint
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.model.reading import apply_at, read
from seamark.run import progress, read_json, write_json
from seamark.text.rendering import Rendered

_VALUES, _INDEX = "activations.safetensors", "index.json"


class BlockCache:
    """Output of a model's first `n_blocks` blocks for known texts.

    Args:
        n_blocks: how many blocks are skipped.
        values_ND: activations of all texts' tokens one after the other, [tokens, d].
        places: {digest of a text's token ids: (first token, number of tokens)}.
        owner: fingerprint of the skipped weights; other weights are refused.
    """

    def __init__(self, n_blocks: int, values_ND: Tensor, places: dict[str, tuple[int, int]], owner: str) -> None:
        self.n_blocks, self.values_ND, self.places, self.owner = n_blocks, values_ND, places, owner

    @classmethod
    def make(
        cls, model: HookedModel, texts: Sequence[Rendered], n_blocks: int, *, precision: Precision = "fp32",
        batch_tokens: int = 8192,
    ) -> BlockCache:  # fmt: skip
        """Read `texts` through the first `n_blocks` blocks (at least one). Equal arguments give equal bytes."""
        name = f"layers.{n_blocks - 1}"
        unique = {_key(t.input_ids.tolist()): t for t in texts}
        rows = list(unique.values())
        found: dict[int, Tensor] = {}
        with progress("Lower blocks", len(rows), "texts") as advance:
            for plan in plan_batches([len(t) for t in rows], batch_tokens):
                batch = collate(rows, int(model.config.pad_token_id), rows=plan)
                h_BTD = read(model, batch, [name], precision=precision).activations[name].cpu()
                found |= {row: h_BTD[b, : len(rows[row])].clone() for b, row in enumerate(plan)}
                advance(len(plan))
        places, start = {}, 0
        for row, key in enumerate(unique):
            places[key] = (start, len(rows[row]))
            start += len(rows[row])
        values_ND = torch.cat([found[row] for row in range(len(rows))])
        return cls(n_blocks, values_ND, places, _fingerprint(model, n_blocks))

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON."""
        save_file({"values": self.values_ND.contiguous()}, folder / _VALUES)
        write_json(folder / _INDEX, {"n_blocks": self.n_blocks, "owner": self.owner, "places": self.places})

    @classmethod
    def load(cls, folder: Path) -> BlockCache:
        """Read what `save` wrote. Raises `FormatError` on damaged files."""
        index = read_json(folder / _INDEX)
        try:
            values_ND = load_file(folder / _VALUES)["values"]
            places = {key: (int(start), int(n)) for key, (start, n) in index["places"].items()}
            return cls(int(index["n_blocks"]), values_ND, places, str(index["owner"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise FormatError("not a cache of block outputs", where=str(folder), fix="Delete it and run again") from e

    def lookup(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Activations [B, T, d] of a right-padded batch, 0 at padding. Raises `ModelError` on an unknown text."""
        h_BTD = self.values_ND.new_zeros(*ids_BT.shape, self.values_ND.shape[1])
        lengths = mask_BT.sum(1).tolist()
        for b, (row, n) in enumerate(zip(ids_BT.tolist(), lengths, strict=True)):
            place = self.places.get(_key(row[:n]))
            if place is None:
                raise ModelError("a text is not among those whose lower blocks were read", where="BlockCache")
            h_BTD[b, :n] = self.values_ND[place[0] : place[0] + place[1]]
        return h_BTD

    @contextlib.contextmanager
    def skipping(self, model: HookedModel) -> Iterator[None]:
        """While the context is open, every forward pass of the model takes the first blocks' output from the cache.

        Hooks on the last skipped block still run, so activations can be changed there.

        Raises:
            ModelError: the model's lower blocks are not those the cache was made with.
        """
        if _fingerprint(model, self.n_blocks) != self.owner:
            raise ModelError("the cached activations come from other weights", where=model.name)
        blocks = list(find_family(model.hf)[1])[: self.n_blocks]
        wrap = _output_form(model, blocks[-1])

        def last(*_args: Any, **_kwargs: Any) -> Any:
            batch = model.batch or model.batch_of_call
            if batch is None:
                raise ModelError("skipping blocks needs a forward pass on input_ids", where=model.name)
            h_BTD = self.lookup(batch.input_ids.cpu(), batch.attention_mask.cpu())
            return wrap(h_BTD.to(batch.input_ids.device))

        with contextlib.ExitStack() as stack:
            stack.enter_context(apply_at(model, {}))  # notes each call's batch
            for block in blocks[:-1]:
                stack.enter_context(instance_has(block, "forward", lambda h, *_a, **_k: wrap(h)))
            stack.enter_context(instance_has(blocks[-1], "forward", last))
            yield


def skipping_below(
    model: HookedModel, hookpoint: str, texts: Sequence[Rendered], *, precision: Precision = "fp32",
    batch_tokens: int = 8192,
) -> contextlib.AbstractContextManager[None]:  # fmt: skip
    """A context in which `texts` run through none of the blocks that a change at `hookpoint` leaves as they are.

    Making it reads the texts through those blocks once. Holds one activation of every token in memory.
    """
    point = parse_hookpoint(hookpoint)
    n_blocks = point.layer + (point.part == "block")
    if n_blocks == 0:
        return contextlib.nullcontext()
    return BlockCache.make(model, texts, n_blocks, precision=precision, batch_tokens=batch_tokens).skipping(model)


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:32]


def _fingerprint(model: HookedModel, n_blocks: int) -> str:
    """Digest of the weights below and in the skipped blocks."""
    blocks = list(find_family(model.hf)[1])
    above = {id(p) for block in blocks[n_blocks:] for p in block.parameters()}
    kept = {id(p) for block in blocks[:n_blocks] for p in block.parameters()}
    h = hashlib.sha256(str(n_blocks).encode())
    for name, p in model.hf.named_parameters():
        if id(p) in kept or ("embed" in name and id(p) not in above):
            h.update(name.encode())
            h.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _output_form(model: HookedModel, block: nn.Module) -> Callable[[Tensor], Any]:
    """How a block hands on its hidden states: bare, or first in a tuple. Found by one pass over one token."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _m, _a, output: seen.append(output))
    was_training = model.hf.training
    try:
        model.hf.eval()
        with torch.inference_mode():
            model.hf(input_ids=torch.ones(1, 1, dtype=torch.long, device=model.device))
    finally:
        handle.remove()
        model.hf.train(was_training)
    if isinstance(seen[0], tuple):
        rest = (None,) * (len(seen[0]) - 1)
        return lambda h: (h, *rest)
    return lambda h: h
