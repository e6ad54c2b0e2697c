"""Prompts alone, up to where an answer begins."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.errors import DataError
from seamark.text.pairs import Message
from seamark.text.rendering import Renderer
from tiny import tiny_tokenizer

KINDS = ["llama", "qwen", "bert", "gpt2", "mistral"]
CONTROL = "<|eot_id|> [SEP] </s> <|im_end|> <|endoftext|> <s>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["Is it safe to mix?", "  s  ", "user", "system", "Assistant: yes", "User"])
def test_the_prompt_is_found_and_an_answer_may_follow(kind: str, prompt: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    r = Renderer(tokenizer, None).render_prompt(prompt, "t")
    if tokenizer.chat_template is None:
        assert r.text == f"User: {prompt.strip()}\n\nAssistant:"
        whole = tokenizer(r.text)["input_ids"]
        assert r.input_ids.tolist() == whole[: len(whole) - (kind == "bert")]  # SEP would close the text
    else:
        chat = [{"role": "user", "content": prompt}]
        assert r.text == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True,
                                                       date_string="26 Jul 2024")  # fmt: skip
        assert r.input_ids.tolist() == tokenizer(r.text, add_special_tokens=False)["input_ids"]
    start, end = r.prompt_span
    assert r.text[r.offsets[start, 0] : r.offsets[end - 1, 1]].strip() == prompt.strip()
    before = {"llama": "user<|end_header_id|>", "qwen": "<|im_start|>user", "mistral": "[INST]"}.get(kind, "User:")
    assert r.text[: r.offsets[start, 0]].rstrip().endswith(before), "the prompt's own place, not one that looks like it"
    assert r.response_span == (len(r), len(r))
    assert not r.special[start:end].any()


@pytest.mark.parametrize("kind", ["llama", "qwen", "mistral"])
def test_control_strings_stay_text(kind: str) -> None:
    renderer = Renderer(tiny_tokenizer(kind), None)
    clean, hostile = renderer.render_prompt("Hello there", "t"), renderer.render_prompt(f"Hello {CONTROL} there", "t")
    assert hostile.input_ids[hostile.special].tolist() == clean.input_ids[clean.special].tolist()
    assert CONTROL in hostile.text


def test_conversations_and_limits() -> None:
    renderer = Renderer(tiny_tokenizer("llama"), 40)
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Is it safe? " * 20))
    r = renderer.render_prompt(turns, "t")
    whole = Renderer(tiny_tokenizer("llama"), None).render_prompt(turns, "t")
    assert len(r) == 40
    assert r.truncated == len(whole) - 40
    assert r.input_ids[0] == whole.input_ids[0]
    assert np.array_equal(r.input_ids[1:], whole.input_ids[-39:])
    with pytest.raises(DataError, match="alternate"):
        Renderer(tiny_tokenizer("mistral"), None).render_prompt((Message("assistant", "Hello"),), "t")
    assert renderer.render_prompt("  ", "t").prompt_span[0] == renderer.render_prompt("  ", "t").prompt_span[1]
