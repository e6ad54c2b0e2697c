from __future__ import annotations

import itertools
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_corpus import make_pairs, make_sae, tiny

import seamark.features.context_choice as choice_module
import seamark.features.contexts as contexts_module
import seamark.features.scan_texts as texts_module
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features import Scan, ScanConfig, scan
from seamark.features.context_sets import (
    ContextConfig,
    ContextHalf,
    FeatureContexts,
    context_sets,
    iter_contexts,
    read_contexts,
    write_contexts,
)
from seamark.features.contexts import Context
from seamark.features.sets import Feature, FeatureSet
from seamark.text.corpus import Corpus
from seamark.text.pairs import Pairs, PreferencePair, hash_unit

sets_module = sys.modules["seamark.features.context_sets"]  # the package gives the function of that name
SMALL = ContextConfig(top=6, per_level=3, silent=5, near_miss=4)
OPENINGS = ["Boil the rice", "Fold the map", "Water the beans", "Call the office", "Sing 3.5 songs", "Lock the gate"]
MIDDLES = ["before noon", "with care", "under the old bridge", "for Dr. Lee", "as the note says", "without a sound"]
ENDS = ["then rest.", "and be glad!", "or ask again?", "it is late; go home.", "nobody minds."]


def make_texts(n: int = 240, doubles: int = 20) -> Corpus:
    """Texts that differ, and some of them again under other ids."""
    rng = random.Random(5)
    different: dict[str, None] = {}
    while len(different) < n:
        clauses = [
            f"{rng.choice(OPENINGS)} {rng.choice(MIDDLES)}, {rng.choice(ENDS)}" for _ in range(rng.randint(1, 3))
        ]
        different[" ".join(clauses)] = None
    texts = list(different)
    items = [(f"t{i}", text) for i, text in enumerate(texts)]
    return Corpus(tuple(items + [(f"double{i}", texts[i]) for i in range(doubles)]))


def run(path: Path, corpus: Corpus | Pairs, **config: object) -> Scan:
    fields = {"rewards": False, "keep_tokens": "always"} | config
    return scan(tiny(), {"s": make_sae()}, corpus, path, config=ScanConfig.model_validate(fields))


def some_latents(result: Scan, n: int = 8) -> list[int]:
    """Latents with a Q_f that fire in some texts and not in others, rare and common ones."""
    share = (result.pooled("s", "read_max") > 0).toarray().mean(0)
    found = np.flatnonzero(~np.isnan(result.q("s")) & (share > 0.08) & (share < 0.92))
    assert len(found) >= n
    return found[np.argsort(share[found])][:: len(found) // n][:n].tolist()


def halves(feature: FeatureContexts) -> tuple[tuple[int, ContextHalf], ...]:
    return (0, feature.explain), (1, feature.simulate)


def chosen(sets: dict[tuple[str, int], FeatureContexts]) -> dict[object, object]:
    """Everything in comparable form: {(feature, half, kind): texts and activations in order}."""
    return {
        (key, half, kind): [(c.text_id, c.activations) for c in found]
        for key, feature in sets.items()
        for half, contexts in halves(feature)
        for kind, found in [
            ("top", contexts.top), ("silent", contexts.silent), ("near", contexts.near_miss), *contexts.levels.items(),
        ]
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Every text in a batch of its own: numbers do not depend on which texts are its neighbours."""
    return run(tmp_path_factory.mktemp("scan") / "whole", make_texts(), batch_tokens=1)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "PART_CHARACTERS", 900)


def test_choice_against_a_dense_recomputation(whole: Scan) -> None:
    strength = whole.pooled("s", "read_max").toarray()
    q, table = whole.q("s"), whole.texts.to_pylist()
    first: dict[str, int] = {}
    for row, about in sorted(enumerate(table), key=lambda item: item[1]["text_id"]):
        first.setdefault(about["content"], row)
    rows = sorted(first.values())
    assert len(rows) == 240
    unit = {row: hash_unit(table[row]["content"]) for row in rows}
    for (_, latent), feature in context_sets(whole, {"s": some_latents(whole)}, SMALL).items():
        assert feature.q == q[latent]
        for half, found in halves(feature):
            mine = [r for r in rows if (unit[r] >= 0.5) == bool(half)]
            firing = [r for r in mine if strength[r, latent] > 0]
            strongest = sorted(firing, key=lambda r: (-strength[r, latent], table[r]["content"]))
            assert [c.text_id for c in found.top] == [table[r]["text_id"] for r in strongest[:6]]
            assert list(found.levels) == list(range(1, 11))
            for level, contexts in found.levels.items():
                low, high = (level - 1) / 10, level / 10 if level < 10 else np.inf
                here = [r for r in firing if low < strength[r, latent] / q[latent] <= high]
                drawn = sorted(here, key=unit.__getitem__)[:3]
                assert [c.text_id for c in contexts] == [table[r]["text_id"] for r in drawn]
            misses = {c.text_id for c in found.near_miss}
            quiet = [table[r]["text_id"] for r in sorted(mine, key=unit.__getitem__) if not strength[r, latent] > 0]
            assert [c.text_id for c in found.silent] == [t for t in quiet if t not in misses][:5]


@pytest.mark.parametrize("strongest", [128, 2])
def test_near_misses_against_a_dense_recomputation(
    whole: Scan, monkeypatch: pytest.MonkeyPatch, strongest: int
) -> None:
    monkeypatch.setattr(choice_module, "CENTROID_LATENTS", strongest)
    mean, strength = whole.pooled("s", "mean").toarray(), whole.pooled("s", "read_max").toarray()
    row_of = {text_id: row for row, text_id in enumerate(whole.texts["text_id"].to_pylist())}
    about, n_positions = whole.texts.to_pylist(), whole.n_positions
    once = np.array([not a["text_id"].startswith("double") for a in about])
    in_half = np.array([hash_unit(a["content"]) >= 0.5 for a in about])
    mine = [once & (in_half == half) for half in (0, 1)]
    usual = [np.average(mean[m], axis=0, weights=n_positions[m]) for m in mine]
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    sets = context_sets(whole, {"s": some_latents(whole)}, SMALL)
    for (_, latent), feature in sets.items():
        for half, found in halves(feature):
            top = [row_of[c.text_id] for c in found.top]
            centroid = np.average(mean[top], axis=0, weights=strength[top, latent]) - usual[half]
            centroid[latent] = 0
            centroid[np.argsort(centroid)[:-strongest]] = 0
            centroid = centroid.clip(min=0) / np.linalg.norm(centroid.clip(min=0))
            alike = unit @ centroid
            misses = [row_of[c.text_id] for c in found.near_miss]
            assert misses or strongest == 2
            np.testing.assert_array_equal(strength[misses, latent], 0)
            assert all(max(c.activations) == 0 for c in found.near_miss)
            assert all(all(c.read) for c in found.near_miss)
            others = np.flatnonzero(mine[half] & ~(strength[:, latent] > 0))
            best = sorted(alike[others], reverse=True)[:4]
            np.testing.assert_allclose(alike[misses], [a for a in best if a > 0], atol=2e-6)


def test_the_best_of_a_bucket_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    content = rng.permutation(400).astype(np.uint64)
    bucket, key, row = rng.integers(0, 5, 400), rng.integers(0, 4, 400).astype(float), np.arange(400)  # many ties
    for pieces in (1, 40):
        best = choice_module.Best(7, 6, content)
        for some in np.array_split(rng.permutation(400), pieces):
            best.add(bucket[some], key[some], row[some])
        for b in range(6):
            mine = sorted(row[bucket == b].tolist(), key=lambda r: (key[r], content[r]))
            assert best.rows(b) == mine[:7]


def test_no_text_in_both_halves_and_none_twice(whole: Scan) -> None:
    sets = context_sets(whole, {"s": range(96)})
    content = dict(zip(whole.texts["text_id"].to_pylist(), whole.texts["content"].to_pylist(), strict=True))
    seen: tuple[set[str], set[str]] = (set(), set())
    for feature in sets.values():
        for half, found in halves(feature):
            for kind in (found.top, found.silent, found.near_miss, *found.levels.values()):
                assert len({content[c.text_id] for c in kind}) == len(kind)
            assert not {c.text_id for c in found.silent} & {c.text_id for c in found.near_miss}
            assert len({c.text_id for c in found.contexts}) == len(found.contexts)
            seen[half].update(content[c.text_id] for c in found.contexts)
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]


def test_another_seed_draws_others(whole: Scan) -> None:
    latent = some_latents(whole, 1)
    found = context_sets(whole, {"s": latent}, SMALL)
    assert chosen(context_sets(whole, {"s": latent}, SMALL.model_copy(update={"seed": 1}))) != chosen(found)
    assert chosen(context_sets(whole, {"s": latent}, SMALL)) == chosen(found)


@pytest.mark.usefixtures("small_parts")
def test_order_and_parts_change_nothing(whole: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(make_texts().items)
    random.Random(1).shuffle(items)
    shuffled = run(tmp_path, Corpus(tuple(items)), batch_tokens=1)
    assert len(shuffled.parts) > 10 > len(whole.parts)
    latents = some_latents(whole)
    expected = chosen(context_sets(whole, {"s": latents}, SMALL))
    assert chosen(context_sets(shuffled, {"s": latents}, SMALL)) == expected
    monkeypatch.setattr(sets_module, "BLOCK", 3)
    monkeypatch.setattr(choice_module, "TEXTS_AT_ONCE", 7)
    assert chosen(context_sets(shuffled, {"s": latents}, SMALL)) == expected


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_token_level_truth(tmp_path: Path, kind: str, scope: str) -> None:
    config = ScanConfig(scope=scope, rewards=False)
    result = scan(tiny(kind), {"s": make_sae(k=20)}, make_pairs(20), tmp_path, config=config)
    latents = some_latents(result, 3)
    rows = result.texts.to_pylist()
    row_of = {about["text_id"]: row for row, about in enumerate(rows)}
    strength = result.pooled("s", "read_max")
    for (_, latent), feature in context_sets(result, {"s": latents}).items():
        assert feature.explain.contexts
        for _, half in halves(feature):
            for context in half.contexts:
                row = row_of[context.text_id]
                assert context.max_activation == strength[row, latent]
                alone = result.token_texts
                assert context.activations == alone.activations(alone.read(row), "s", {latent: 1.0})
                assert len(context.tokens) == len(context.activations) == len(context.read) == len(context.scoring)
                assert sum(context.scoring) == rows[row]["n_positions"]
                assert all(r for r, s in zip(context.read, context.scoring, strict=True) if s)
                assert all(context.read) == (scope == "response")  # of a prompt only clause ends are read
                assert (context.pair_id, context.side) == (rows[row]["pair_id"], rows[row]["side"])


def test_clause_ends_of_the_template_are_not_shown(tmp_path: Path) -> None:
    result = scan(tiny(), {"s": make_sae(k=20)}, make_pairs(20), tmp_path, config=ScanConfig.paper())
    sets = context_sets(result, {"s": range(96)})
    contexts = [c for f in sets.values() for _, half in halves(f) for c in half.contexts]
    n_positions = dict(zip(result.texts["text_id"].to_pylist(), result.n_positions.tolist(), strict=True))
    assert any(sum(c.scoring) < n_positions[c.text_id] for c in contexts)
    assert all(len(c.tokens) == len(c.activations) for c in contexts)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("positions", ["clauses", "last"])
def test_reading_again_equals_what_was_kept(tmp_path: Path, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = {"a/1": make_sae(k=20), "b": make_sae("layers.1.mlp", seed=4)}
    pairs, model = make_pairs(40), tiny()
    results = {
        keep: scan(model, suite, pairs, tmp_path / keep, config=ScanConfig(keep_tokens=keep, positions=positions))
        for keep in ("always", "never")
    }
    wanted = {sae_id: np.flatnonzero(~np.isnan(results["never"].q(sae_id)))[:12:3].tolist() for sae_id in suite}
    config = ContextConfig(top=2, per_level=1, silent=1, near_miss=1)
    kept = context_sets(results["always"], wanted, config)
    reads: list[str] = []
    gather = contexts_module.gather

    def counting(model, texts, rows, *args, **kwargs):
        reads.extend(texts[r].text_id for r in rows)
        return gather(model, texts, rows, *args, **kwargs)

    monkeypatch.setattr(contexts_module, "gather", counting)
    monkeypatch.setattr(contexts_module, "TOKENS_AT_ONCE", 300)
    again = context_sets(results["never"], wanted, config, model=model, suite=suite)
    used = {c.text_id for f in again.values() for _, half in halves(f) for c in half.contexts}
    assert sorted(reads) == sorted(used)
    assert len(used) < len(results["never"].texts)
    assert list(again) == list(kept) == [(s, latent) for s in wanted for latent in wanted[s]]
    for key, feature in kept.items():
        for (_, one), (_, two) in zip(halves(feature), halves(again[key]), strict=True):
            assert one.levels.keys() == two.levels.keys()
            for mine, other in zip(one.contexts, two.contexts, strict=True):
                assert replace(mine, activations=()) == replace(other, activations=())
                np.testing.assert_allclose(mine.activations, other.activations, rtol=1e-4, atol=1e-6)


def test_what_reading_again_needs(tmp_path: Path) -> None:
    result = run(tmp_path / "never", make_pairs(), keep_tokens="never")
    with pytest.raises(DataError, match="keep_tokens: always, or give the scan's model and suite"):
        context_sets(result, {"s": [0]})
    with pytest.raises(DataError, match="kept no latents of single tokens"):
        context_sets(result, {"s": [0]}, model=tiny())
    with pytest.raises(ConfigError, match="not the model of the scan"):
        context_sets(result, {"s": [0]}, model=tiny("bert"), suite={"s": make_sae()})
    for suite in ({"s": make_sae(seed=1)}, {"other": make_sae()}):
        with pytest.raises(ConfigError, match="does not hold the scan's autoencoder 's'"):
            context_sets(result, {"s": [0]}, model=tiny(), suite=suite)


def test_a_feature_without_q_has_its_strongest_texts_only(tmp_path: Path) -> None:
    result = run(tmp_path, make_texts(6, doubles=0))
    strength = result.pooled("s", "read_max").toarray()
    rare = np.flatnonzero(np.isnan(result.q("s")) & (strength > 0).any(0)).tolist()
    silent = np.flatnonzero(~(strength > 0).any(0)).tolist()
    assert rare
    assert silent
    for (_, latent), feature in context_sets(result, {"s": [rare[0], silent[0]]}).items():
        assert feature.q is None
        assert "fewer than 10" in feature.reason
        found = [c for _, half in halves(feature) for c in half.contexts]
        assert len(found) == (strength[:, latent] > 0).sum()
        assert all(c.q is None for c in found)
        for _, half in halves(feature):
            assert (half.levels, half.silent, half.near_miss) == ({}, (), ())


def test_group_feature_set_and_bad_input(tmp_path: Path) -> None:
    result = run(tmp_path, make_pairs(16))
    latents = some_latents(result, 3)
    named = FeatureSet(features=tuple(Feature(sae="s", latent=latent, sign=1) for latent in latents))
    assert context_sets(result, named) == context_sets(result, {"s": [*latents, latents[0]]})
    assert context_sets(result, {}) == {}
    inside = context_sets(result, named, ContextConfig(group="chat"))
    contexts = [c for f in inside.values() for _, half in halves(f) for c in half.contexts]
    assert {c.group for c in contexts} == {"chat"}
    with pytest.raises(DataError, match="no group 'odd'"):
        context_sets(result, named, ContextConfig(group="odd"))
    with pytest.raises(ConfigError, match="no autoencoder 'zz'"):
        context_sets(result, {"zz": [0]})
    with pytest.raises(DataError, match="no latent 96"):
        context_sets(result, {"s": [96]})
    none = context_sets(result, named, ContextConfig(top=0, per_level=0, silent=0, near_miss=0))
    assert all(half.contexts == () for f in none.values() for _, half in halves(f))


def test_an_empty_response_is_no_silent_text(tmp_path: Path) -> None:
    items = [replace(p, chosen="") if i % 2 else p for i, p in enumerate(make_pairs(20))]
    result = run(tmp_path, Pairs(tuple(items)))
    sets = context_sets(result, {"s": some_latents(result, 3)}, ContextConfig(silent=100))
    assert all(c.tokens for f in sets.values() for _, half in halves(f) for c in half.contexts)


def test_json_lines_come_back_as_they_were(tmp_path: Path) -> None:
    odd = PreferencePair(
        "odd \u2029 id", "safety", "Say\u2028it", "„Grüße“, 你好。\x85 <b>yes</b>!", "No\r\nway \x00, no."
    )
    result = run(tmp_path / "scan", Pairs((*make_pairs(16), odd)))
    sets = context_sets(result, {"s": [*some_latents(result, 3), int(np.flatnonzero(np.isnan(result.q("s")))[0])]})
    path = tmp_path / "contexts.jsonl"
    write_contexts(sets, path)
    assert read_contexts(path) == sets
    assert [json.loads(line)["latent"] for line in path.read_bytes().splitlines()] == [latent for _, latent in sets]
    write_contexts({}, path)
    assert read_contexts(path) == {}


def test_features_one_by_one(tmp_path: Path) -> None:
    """Writing takes each feature only once the one before is on its way, and reading gives the first at once."""
    half = ContextHalf(top=(Context("t", None, None, "g", (" a", " a"), (0.0, 2.0), (True, False), 4.0, (True, True)),))
    taken: list[int] = []
    n_bytes: list[int] = []
    path = tmp_path / "contexts.jsonl"

    def some(n: int) -> Iterator[FeatureContexts]:
        for latent in range(n):
            taken.append(latent)
            assert not path.exists()
            n_bytes.append(sum(p.stat().st_size for p in tmp_path.iterdir()))
            yield FeatureContexts("s", latent, 4.0, "", half, ContextHalf())
        if n == 3:
            raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_contexts(some(3), path)
    assert list(tmp_path.iterdir()) == []  # whole or not at all
    assert taken == [0, 1, 2]
    write_contexts(some(200), path)
    assert n_bytes[-1] > path.stat().st_size / 2  # what came first is on disk when the last one is asked for
    path.unlink()
    write_contexts(some(4), path)
    path.write_bytes(path.read_bytes() + b"[]\n")
    features = iter_contexts(path)
    assert [next(features).latent for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(FormatError, match=r"contexts\.jsonl, line 5"):
        next(features)
    one, two = itertools.islice(iter_contexts(path), 2)
    assert one.explain.top[0].tokens[0] is two.explain.top[0].tokens[1]  # equal tokens are in memory once
    assert one.explain.top[0] == half.top[0]


def test_damaged_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "contexts.jsonl"
    feature = FeatureContexts("s", 1, None, "rare", ContextHalf(), ContextHalf())
    write_contexts({("s", 1): feature, ("s", 2): replace(feature, latent=2)}, path)
    good = path.read_text()
    for bad in (good[:-20], good.replace('"latent": 2', '"neuron": 2'), good + "[1]\n", good + "{}\n"):
        path.write_text(bad)
        with pytest.raises(FormatError, match=r"contexts\.jsonl, line [23]"):
            read_contexts(path)
    path.write_text(good.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(FormatError, match="format version 9"):
        read_contexts(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_contexts(tmp_path / "nothing.jsonl")


def many_prompts(n: int = 120) -> Pairs:
    """Pairs with as many prompts as half their number: each prompt has two pairs, four answers."""
    base = make_pairs(n)
    return Pairs(tuple(replace(p, prompt=f"Say what you know of thing {i // 2}, please.") for i, p in enumerate(base)))


def by_half(sets: dict[tuple[str, int], FeatureContexts]) -> tuple[list[Context], list[Context]]:
    found: tuple[list[Context], list[Context]] = ([], [])
    for feature in sets.values():
        for half, contexts in halves(feature):
            found[half].extend(contexts.contexts)
    return found


@pytest.mark.parametrize("scope", ["response", "all"])
def test_no_prompt_in_both_halves(tmp_path: Path, scope: str) -> None:
    result = run(tmp_path, many_prompts(), scope=scope)
    prompt_of = {about["text_id"]: about["prompt"] for about in result.texts.to_pylist()}
    explain, simulate = by_half(context_sets(result, {"s": range(96)}, ContextConfig(silent=100)))
    prompts = [{prompt_of[c.text_id] for c in some} for some in (explain, simulate)]
    assert min(map(len, prompts)) > 15
    assert not prompts[0] & prompts[1]
    assert all(c.prompt == prompt_of[c.text_id] for c in (*explain, *simulate))
    answers = {(c.prompt, c.text) for c in (*explain, *simulate)}
    assert len(answers) > sum(map(len, prompts))  # there are prompts with several answers


def test_a_side_of_a_split_by_prompt_falls_into_both_halves(tmp_path: Path) -> None:
    _, test = many_prompts().split(0.3)
    explain, simulate = by_half(context_sets(run(tmp_path, test), {"s": range(96)}))
    counts = [len({c.prompt for c in some}) for some in (explain, simulate)]
    assert min(counts) >= 0.25 * sum(counts)


@pytest.mark.parametrize("half", [0, 1])
def test_no_half_depends_on_texts_of_the_other(whole: Scan, half: int) -> None:
    latents = some_latents(whole)
    allowed = choice_module.candidates(whole, SMALL)
    alone = allowed._replace(half=np.where(allowed.half == half, allowed.half, -1).astype(np.int8))
    both = choice_module.Chooser(whole, "s", latents, allowed, SMALL).choose()
    single = choice_module.Chooser(whole, "s", latents, alone, SMALL).choose()
    assert any(rows[half].near_miss for rows in both.values())
    assert all(single[key][half] == rows[half] and not single[key][1 - half].all() for key, rows in both.items())


def test_plain_texts_have_no_prompt(whole: Scan) -> None:
    explain, simulate = by_half(context_sets(whole, {"s": some_latents(whole, 2)}, SMALL))
    assert {c.prompt for c in (*explain, *simulate)} == {""}


def test_files_from_before_prompts_were_told_are_read(tmp_path: Path) -> None:
    sets = context_sets(run(tmp_path / "scan", make_pairs(16)), {"s": [1, 2]})
    write_contexts(sets, tmp_path / "new.jsonl")
    text = (tmp_path / "new.jsonl").read_text(encoding="utf-8")
    older = re.sub(r', "prompt": "[0-9a-f]{16}"', "", text)
    assert older.count("text_id") == text.count("text_id") == text.count('"prompt"') > older.count('"prompt"') == 0
    (tmp_path / "old.jsonl").write_text(older, encoding="utf-8")
    found = read_contexts(tmp_path / "old.jsonl")
    assert {c.prompt for c in (*by_half(found)[0], *by_half(found)[1])} == {""}
    assert chosen(found) == chosen(sets)
