"""Search: what it finds and in which order is what a plain look through all features finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_features import CHINESE, RUNS, TAGS, WORDS, Made, all_ids, make, tokens_of, write

from seamark.atlas import Atlas, AtlasWriter, ExplanationRow, FeatureRow, Query
from seamark.atlas import search as search_module
from seamark.atlas.search import parse_words
from seamark.atlas.texts import searchable

N = 160
FEATURES = make(N)
SORTS = ("score", "rating", "contrast", "share", "id")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return Atlas.open(write(tmp_path_factory.mktemp("search") / "atlas.db", FEATURES))


def parsed(words: str) -> list[tuple[bool, list[str], bool]]:
    """[(left out, tokens in a row, the last one may go on)], read as documented, without a regular expression."""
    found, rest = [], words
    while rest := rest.lstrip():
        minus = len(rest) - len(rest.lstrip("-"))
        body = rest[minus:]
        quoted = body.startswith('"')
        text, _, rest = body[1:].partition('"') if quoted else _word(body)
        tokens = tokens_of(text)
        ends = bool(text) and tokens_of(text[-1]) != []
        typing = not quoted and not minus and not rest and ends and not words[-1].isspace()
        if tokens:
            found.append((bool(minus), tokens, typing and len(tokens[-1]) > 1))
    return found


def _word(body: str) -> tuple[str, str, str]:
    word = "" if not body or body[0].isspace() else body.split()[0]
    return word, "", body[len(word) :]


def holds(tokens: list[str], phrase: list[str], typing: bool) -> bool:
    for at in range(len(tokens) - len(phrase) + 1):
        *first, last = tokens[at : at + len(phrase)]
        if first == phrase[:-1] and (last.startswith(phrase[-1]) if typing else last == phrase[-1]):
            return True
    return False


def matches(f: Made, q: Query) -> bool:
    concept = (q.concept or "").rpartition("/")
    tags = [(t.domain, t.concept) for s in f.said for t in s.tags]
    checks = [
        q.sae in (None, f.sae),
        q.layer in (None, f.layer),
        q.domain is None or q.domain in f.domains,
        q.concept is None or any(c == concept[2] and (concept[0] or q.domain or d) == d for d, c in tags),
        q.state is None or bool(f.shown and f.shown[0].state == q.state),
        q.language is None or q.language in {s.language for s in f.said},
        q.min_score is None or (f.score is not None and f.score >= q.min_score),
        q.max_score is None or (f.score is not None and f.score <= q.max_score),
        q.min_rating is None or (f.rating is not None and f.rating >= q.min_rating),
        q.sign in (None, f.sign),
        q.explained in (None, f.explained),
        all(holds(f.tokens, phrase, typing) != left_out for left_out, phrase, typing in parsed(q.words)),
    ]
    return all(checks)


def ordered(features: list[Made], q: Query) -> list[int]:
    """By value, then upwards by id (downwards where values go up); what has no value comes last."""
    keys: dict[str, Callable[[Made], tuple[Any, ...]]] = {
        "rating": lambda f: (f.rating, -9 if f.score is None else f.score, -f.id),
        "id": lambda f: (f.sae, f.latent),
        "relevance": lambda f: (f.score, -f.id),
    }
    key = keys.get(q.sort, lambda f: (getattr(f, q.sort), -f.id))
    there = sorted((f for f in features if key(f)[0] is not None), key=key, reverse=q.descending)
    gone = sorted((f for f in features if key(f)[0] is None), key=lambda f: key(f)[1:], reverse=q.descending)
    return [f.id for f in [*there, *gone]]


WORD = st.sampled_from([*WORDS, *CHINESE, "声", "扬声", "har", "ship", "physical", "war crimes", "17_3", "a/one", "zzz",
                        "--", "!?", "b'two", "3"])  # fmt: skip
ITEM = st.builds(lambda minus, word, quote: f'{minus}"{word}"' if quote else f"{minus}{word}",
                 st.sampled_from(["", "", "", "-"]), WORD, st.booleans())  # fmt: skip
TEXTS = st.builds(lambda items, end: " ".join(items) + end, st.lists(ITEM, max_size=3), st.sampled_from(["", " ", '"']))
QUERIES = st.builds(
    Query,
    words=st.one_of(st.just(""), TEXTS),
    sae=st.sampled_from([None, None, None, "a/one", "c", "nobody"]),
    layer=st.sampled_from([None, None, None, 3, 17, 9]),
    domain=st.sampled_from([None, None, None, "violence", "war crimes", "crimes", "nothing"]),
    concept=st.sampled_from([None, None, None, "physical", "violence/physical", "politics/physical", "x y"]),
    state=st.sampled_from([None, None, None, "text", "masked", "failed"]),
    language=st.sampled_from([None, None, None, "en", "zh"]),
    min_score=st.sampled_from([None, None, None, -0.2, 0.5]),
    max_score=st.sampled_from([None, None, None, 0.5, 0.9]),
    min_rating=st.sampled_from([None, None, None, 2, 5]),
    sign=st.sampled_from([None, None, None, 1, -1]),
    explained=st.sampled_from([None, None, None, True, False]),
    sort=st.sampled_from(SORTS),
    descending=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(QUERIES)
@example(Query())
@example(Query(words="-harbour"))
@example(Query(words='"扬声'))
def test_finds_what_a_plain_look_finds(atlas: Atlas, query: Query) -> None:
    expected = ordered([f for f in FEATURES if matches(f, query)], query)
    assert all_ids(atlas, query) == expected
    found = atlas.find(query.model_copy(update={"limit": 3, "offset": 1}))
    assert [card.id for card in found.cards] == expected[1:4]
    assert (found.total, found.capped) == (len(expected), False)


@settings(max_examples=120, deadline=None)
@given(QUERIES, st.sampled_from([(12, 20), (12, 3), (1000, 3)]))
@example(Query(words="har", sort="rating", descending=False), (1000, 3))
def test_long_lists_are_walked_in_the_same_order(atlas: Atlas, query: Query, bounds: tuple[int, int]) -> None:
    """With the bounds for a hundred thousand features brought down to these few, every way of searching is taken."""
    cap, probed = bounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "CAP", cap)
        patch.setattr(search_module, "PROBED", probed)
        expected = ordered([f for f in FEATURES if matches(f, query)], query)
        assert all_ids(atlas, query) == expected
        found = atlas.find(query)
        assert (found.total, found.capped) == (min(cap, len(expected)), len(expected) > cap)


@settings(max_examples=30, deadline=None)
@given(QUERIES)
def test_exports_take_all_that_is_found_in_the_order_of_names(atlas: Atlas, query: Query) -> None:
    expected = [f for f in FEATURES if matches(f, query)]
    numbers = {s.id: s.number for s in atlas.saes()}
    expected.sort(key=lambda f: (numbers[f.sae], f.latent))
    found = list(atlas.iter_features(query))
    assert [f.card.id for f in found] == [f.id for f in expected]


@settings(max_examples=150, deadline=None)
@given(words=st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from(['"', "'", "-", "*", "(", ")", "^", ":", "+", "{", "}", "AND", "OR", "NOT", "NEAR(",
                              "words:", "a", "声", " ", "\0", "\ud800", "\u202e", ";", "--", "DROP TABLE features",
                              "\\", ","]),
             max_size=12).map("".join),
))  # fmt: skip
@example(words='"')
@example(words='-"')
@example(words=" ".join(["a"] * 250))
@example(words="- " * 200)
@example(words='a" OR "b')
@example(words="रि")
@example(words="\U0001f600")
def test_nothing_is_a_syntax_error(atlas: Atlas, words: str) -> None:
    for sort in ("relevance", "score"):
        found = atlas.find(Query(words=words, sort=sort, layer=3))
        assert found.total >= len(found.cards)
    assert atlas.overview().features == N


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_texts_from_outside_are_values_everywhere(atlas: Atlas, text: str) -> None:
    for query in (Query(sae=text), Query(domain=text), Query(concept=text), Query(language=text)):
        assert atlas.find(query).total <= N
    assert atlas.card(text, 0) is None or text in {f.sae for f in FEATURES}
    assert atlas.contexts(text, 3) == []
    assert atlas.marks(text) == {}


def test_what_words_say(tmp_path: Path) -> None:
    """The documented language, case by case."""
    texts = {
        "Fires on the harbour at night": 0, "harbours and ships": 1, "The loudspeaker 扬声器 hums": 2, "声器": 3,
        "器声": 4, "night harbour": 5, "naïve café": 6, "東京の港ハーバー": 7, "x<b>bold</b>y": 8, "ＦＵＬＬ width": 9,
        "한국어 항구": 10,
    }  # fmt: skip
    path = tmp_path / "atlas.db"
    with AtlasWriter.open(path, create=True) as w:
        for run in RUNS:
            w.add_run(_run(run))
        ids = w.add_features(w.add_sae(_sae()), map(FeatureRow, texts.values()))
        w.add_explanations(ExplanationRow(ids[i], text, "one", "llm") for text, i in texts.items())
    every = set(range(11))
    expected = {
        # The last word may be incomplete, unless something stands behind it; one letter is a word.
        "harbour": {0, 1, 5}, "harbour ": {0, 5}, "harb": {0, 1, 5}, "harb ": set(), "harb night": set(), "h": set(),
        "x": {8}, "HARBOUR night ": {0, 5}, "night harb": {0, 5},
        # Phrases, and what is left out.
        '"night harbour"': {5}, '"harb"': set(), '"night harbour': {5}, "harbours -night": {1}, "harbour -night": set(),
        '-"night harbour" harbour ': {0}, "-harbour": every - {0, 5}, "-harb": every, "-声 loudspeaker": set(),
        # Characters of Chinese, Japanese and Korean are words, and a run of them is a phrase.
        "扬声": {2}, "声器": {2, 3}, "声": {2, 3, 4}, "扬声器": {2}, "声 器": {2, 3, 4}, "港": {7}, "ハーバー": {7},
        "の港": {7}, "항구": {10}, "구항": set(),
        # Case, accents, width and marks do not matter.
        "cafe": {6}, "NAIVE": {6}, "full": {9}, "ｆｕｌｌ": {9}, "<b>bold</b>": {8}, "bold": {8},
        # Names are words.
        "3_5": {5}, "17": set(), "one/sae": every,
        # Nothing to look for.
        "": every, "  ": every, "?!": every, "- --": every, '""': every,
    }  # fmt: skip
    with Atlas.open(path) as atlas:
        for words, latents in expected.items():
            for sort in ("score", "relevance"):
                found = {card.latent for card in atlas.find(Query(words=words, sort=sort)).cards}
                assert found == latents, words


def test_the_nearest_match_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "atlas.db"
    texts = ["bread " * 30 + "harbour", "harbour", "a word on the harbour and the harbour", "tea"]
    with AtlasWriter.open(path, create=True) as w:
        w.add_run(_run("one"))
        ids = w.add_features(w.add_sae(_sae()), map(FeatureRow, range(4)))
        w.add_explanations(ExplanationRow(ids[i], text, "one", "llm") for i, text in enumerate(texts))
    with Atlas.open(path) as atlas:
        best = [card.latent for card in atlas.find(Query(words="harbour", sort="relevance")).cards]
        assert set(best) == {0, 1, 2}
        assert best[-1] == 0
        worst = atlas.find(Query(words="harbour", sort="relevance", descending=False)).cards
        assert [card.latent for card in worst] == best[::-1]


def test_masked_texts_are_no_words(atlas: Atlas) -> None:
    assert parse_words("***").match is None
    masked = [f for f in FEATURES if any(s.state == "masked" for s in f.said)]
    assert masked
    assert searchable("***") == "***"


def _run(name: str) -> Any:
    from seamark.atlas import Run

    return Run(id=name, kind="test", title=name, created="2025-01-01T00:00:00+00:00", manifest={})


def _sae() -> Any:
    from made_features import sae

    return sae("one/sae", 3)


def test_tags_are_words(atlas: Atlas) -> None:
    for tag in TAGS:
        found = set(all_ids(atlas, Query(words=f'"{tag.concept or tag.domain}"')))
        with_it = {f.id for f in FEATURES if any(tag in s.tags for s in f.said)}
        assert with_it <= found
