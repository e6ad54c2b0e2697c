"""Changes at hookpoints in direct calls: what the batch knows of prompts, caches, padding and beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seamark.errors import ModelError
from seamark.model import HookedModel, LanguageModel, apply_at
from seamark.model.batching import Batch
from tiny import tiny_hooked, tiny_model

CAUSAL = pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma3"])
LENGTHS = (9, 4, 7)
NEW = 6


def language(kind: str) -> LanguageModel:
    model = tiny_hooked(kind, "lm")
    assert isinstance(model, LanguageModel)
    return model


def prompts(model: LanguageModel, side: str) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on one side."""
    generator = torch.Generator().manual_seed(3)
    width = max(LENGTHS)
    ids = torch.full((len(LENGTHS), width), int(model.config.pad_token_id))
    mask = torch.zeros_like(ids)
    for b, n in enumerate(LENGTHS):
        at = slice(width - n, width) if side == "left" else slice(0, n)
        ids[b, at] = torch.randint(20, len(model.tokenizer), (n,), generator=generator)
        mask[b, at] = 1
    return {"input_ids": ids, "attention_mask": mask}


def noting(model: HookedModel, seen: list[Batch]) -> Any:
    def change(h: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert h.shape[:2] == batch.input_ids.shape == batch.attention_mask.shape
        seen.append(batch)
        return h

    return apply_at(model, {"layers.1": change})


def write(model: LanguageModel, given: dict[str, torch.Tensor], **how: Any) -> torch.Tensor:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        out: torch.Tensor = model.hf.generate(**given, **(settings | how))
    return out


def by_text(seen: list[Batch]) -> dict[int, dict[int, int]]:
    """{text: {place: token}} of all that was run."""
    found: dict[int, dict[int, int]] = {}
    for batch in seen:
        for row, ids, places in zip(batch.rows, batch.input_ids, batch.positions, strict=True):
            for token, place in zip(ids.tolist(), places.tolist(), strict=True):
                if place >= 0:
                    found.setdefault(row, {})[place] = token
    return found


@CAUSAL
@pytest.mark.parametrize("cache", [True, False])
def test_places_are_those_in_the_text_with_and_without_the_cache(kind: str, cache: bool) -> None:
    model, seen = language(kind), list[Batch]()
    given = prompts(model, "left")
    with noting(model, seen):
        out = write(model, given, use_cache=cache)
    assert [len(b.input_ids[0]) for b in seen] == ([9, 1, 1, 1, 1, 1] if cache else [9, 10, 11, 12, 13, 14])
    texts = by_text(seen)
    for b, n in enumerate(LENGTHS):
        whole = out[b, max(LENGTHS) - n : -1].tolist()  # the last token is chosen, never read
        assert texts[b] == dict(enumerate(whole))
    assert all(batch.given is not None and batch.given.tolist() == list(LENGTHS) for batch in seen)
    assert model.batch_of_call is None
    assert "generate" not in vars(model.hf)


def test_beams_and_several_answers_belong_to_their_text() -> None:
    model, seen = language("llama"), list[Batch]()
    with noting(model, seen):
        write(model, prompts(model, "left"), num_beams=4, num_return_sequences=2)
    assert seen[0].rows == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
    assert all(b.given is not None and b.given.tolist() == [9] * 4 + [4] * 4 + [7] * 4 for b in seen)


def test_a_cache_of_ones_own_and_a_static_one() -> None:
    model, seen = language("llama"), list[Batch]()
    given = prompts(model, "left")
    with noting(model, seen), torch.no_grad():
        first = model.hf(input_ids=given["input_ids"][:, :6], attention_mask=given["attention_mask"][:, :6],
                         use_cache=True)  # fmt: skip
        model.hf(input_ids=given["input_ids"][:, 6:], attention_mask=given["attention_mask"],
                 past_key_values=first.past_key_values)  # fmt: skip
    assert seen[1].positions.tolist() == [[6, 7, 8], [1, 2, 3], [4, 5, 6]]
    assert seen[1].given is None
    static: list[Batch] = []
    with noting(model, static):
        out = write(model, given, cache_implementation="static")
    assert by_text(static) == {b: dict(enumerate(out[b, max(LENGTHS) - n : -1].tolist()))
                               for b, n in enumerate(LENGTHS)}  # fmt: skip
    with noting(model, []), torch.no_grad(), pytest.raises(ModelError, match="attention mask of 3 columns for 9"):
        model.hf(input_ids=given["input_ids"][:, 6:], attention_mask=given["attention_mask"][:, 6:],
                 past_key_values=first.past_key_values)  # fmt: skip


@pytest.mark.parametrize(("kind", "head"), [("llama", "reward"), ("bert", "reward"), ("gpt2", "lm")])
def test_arguments_by_place_and_padding_on_the_right(kind: str, head: str) -> None:
    model, seen = tiny_hooked(kind, head), list[Batch]()
    given = prompts(model, "right")
    with noting(model, seen), torch.no_grad():
        if kind == "gpt2":  # its second argument is the cache
            model.hf(given["input_ids"], None, given["attention_mask"])
        else:
            model.hf(given["input_ids"], given["attention_mask"])
        model.hf(given["input_ids"])
    assert seen[0].positions.tolist() == [[*range(n), *[-1] * (9 - n)] for n in LENGTHS]
    assert seen[1].positions.tolist() == [list(range(9))] * 3


def test_a_mask_that_hides_the_padding_is_refused() -> None:
    model = language("llama")
    ids = prompts(model, "left")["input_ids"]
    square = torch.zeros(3, 1, 9, 9)
    with noting(model, []), pytest.raises(ModelError, match="which tokens are padding"):
        model.hf(input_ids=ids, attention_mask=square)


def test_a_model_of_ones_own_has_no_tokenizer() -> None:
    hf = tiny_model("llama", "lm")
    hf.config.pad_token_id = None
    model = HookedModel(hf, None, "mine")
    assert hf.config.pad_token_id is None
    seen: list[Batch] = []
    with noting(model, seen), torch.no_grad():
        hf(input_ids=torch.arange(5)[None])
    assert seen[0].positions.tolist() == [[0, 1, 2, 3, 4]]
