"""The human check: blind sheets, what raters may send back, and agreement against brute force and scikit-learn."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from seamark.errors import ConfigError, DataError, FormatError
from seamark.explain.agreement import Pair, Weights, checks, compare, kappa, population_agreement
from seamark.explain.human import Agreement, SheetKey, export_sheet, import_sheet
from seamark.explain.ratings import Rating
from seamark.explain.records import Explanation
from seamark.features.context_sets import ContextHalf, FeatureContexts
from seamark.features.contexts import Context

Key = tuple[str, int]
WORDS = ("boats", " rest", " in", " the", " cove", " until", " rain", " stops")


def context(name: str, strength: float, rng: random.Random) -> Context:
    tokens = tuple(rng.choice(WORDS) for _ in range(6))
    activations = tuple(strength if i == 3 else 0.0 for i in range(6))
    return Context(
        f"text-{name}", f"pair-{name}", "rejected", "grp", tokens, activations, (True,) * 6, 2.0, (True,) * 6
    )


def feature(key: Key) -> FeatureContexts:
    rng = random.Random(str(key))
    name = f"{key[0]}-{key[1]}"
    top = tuple(context(f"{name}-{i}", 3.0 - i / 10, rng) for i in range(7))
    levels = {level: (context(f"{name}-l{level}", level / 5, rng),) for level in (1, 2, 5, 8)} | {9: top[:1]}
    half = ContextHalf(top, levels, (context("silent", 0.0, rng),), ())
    return FeatureContexts(*key, 2.0, "", half, ContextHalf((context("held out", 9.0, rng),)))


def explanation(key: Key, rating: int | None) -> Explanation:
    return Explanation(sae=key[0], latent=key[1], text="Names of harbours.", rating=rating, rating_reason="It is so.",
                       language="en", method="llm", model="some/model-7b")  # fmt: skip


def ratings(counts: Mapping[int | None, int]) -> dict[Key, Explanation]:
    """So many features of each rating."""
    given = [rating for rating, n in counts.items() for _ in range(n)]
    return {key: explanation(key, r) for i, r in enumerate(given) for key in [("secret.sae", 1000 + i)]}


def contexts(of: Mapping[Key, object]) -> dict[Key, FeatureContexts]:
    return {key: feature(key) for key in of}


@pytest.fixture(scope="module")
def machine() -> dict[Key, Explanation]:
    return ratings({5: 3, 4: 20, 3: 20, 2: 30, 1: 60, None: 4})


@pytest.fixture
def sheet(machine: dict[Key, Explanation], tmp_path: Path) -> SheetKey:
    return export_sheet(contexts(machine), machine, tmp_path / "out", n=50)


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))


def fill(file: Path, rows: Sequence[tuple[object, object]], comment: str = "") -> Path:
    file.write_text("code,rating,comment\n" + "".join(f"{c},{r},{comment}\n" for c, r in rows), encoding="utf-8")
    return file


def key_of(machine: Sequence[int]) -> SheetKey:
    entries = [{"code": f"F-{i:04}", "sae": "s", "latent": i, "rating": r} for i, r in enumerate(machine)]
    return SheetKey.model_validate(
        {"sheet": "ab", "machine": "llm (m)", "seed": 0, "per_level": True, "population": dict(Counter(machine)),
         "left_out": {}, "features": entries}
    )  # fmt: skip


def agreement(tmp_path: Path, machine: Sequence[int], *people: Sequence[int | None], draws: int = 200) -> Agreement:
    key, files = key_of(machine), []
    for number, person in enumerate(people):
        rows = [(e.code, "" if r is None else r) for e, r in zip(key.features, person, strict=True)]
        files.append(fill(tmp_path / f"rater{number}.csv", rows, comment=f"by {number}"))
    return import_sheet(files, key, draws=draws)


def some(n: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Ratings by two who agree somewhat."""
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 6, n)
    return first.tolist(), np.clip(first + rng.integers(-2, 3, n), 1, 5).tolist()


# The sheet


def test_what_the_rater_gets_tells_nothing(sheet: SheetKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "sheet").iterdir()) == ["README.txt", "sheet.csv", "sheet.html"]
    assert sorted(p.name for p in out.iterdir()) == ["key.json", "sheet"]
    for file in (out / "sheet").iterdir():
        text = file.read_text(encoding="utf-8")
        for secret in ("secret", "10[0-9][0-9]", "11[0-9][0-9]", "harbours", "It is so", "model-7b", "text-", "pair-",
                       "grp", "rejected", "held out"):  # fmt: skip
            assert not re.search(rf"(?<!#){secret}(?!px)", _without_script(text)), (file, secret)
    rows = table(out / "sheet" / "sheet.csv")
    assert [row["code"] for row in rows] == [e.code for e in sheet.features]
    assert {row["rating"] for row in rows} == {row["comment"] for row in rows} == {""}
    assert all(re.fullmatch(r"F-[2-9b-z]{4}", e.code) for e in sheet.features)
    assert len({e.code for e in sheet.features}) == 50
    html = (out / "sheet" / "sheet.html").read_text(encoding="utf-8")
    assert re.findall(r'data-code="([^"]+)"', html) == [e.code for e in sheet.features]
    assert f'data-sheet="{sheet.sheet}"' in html
    assert SheetKey.load(out / "key.json") == sheet


def _without_script(html: str) -> str:
    return re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)


def test_the_key_says_what_the_codes_stand_for(sheet: SheetKey, machine: dict[Key, Explanation]) -> None:
    assert sheet.machine == "llm (some/model-7b)"
    assert {(e.sae, e.latent): e.rating for e in sheet.features}.items() <= {
        k: e.rating for k, e in machine.items()
    }.items()
    assert sheet.population == {1: 60, 2: 30, 3: 20, 4: 20, 5: 3}
    assert sheet.left_out == {"without a rating": 4}


def test_each_rating_is_drawn_alike_as_far_as_it_goes(sheet: SheetKey, machine: dict[Key, Explanation]) -> None:
    assert Counter(e.rating for e in sheet.features) == {5: 3, 4: 12, 3: 12, 2: 12, 1: 11}


def test_or_as_they_come(machine: dict[Key, Explanation], tmp_path: Path) -> None:
    found = export_sheet(contexts(machine), machine, tmp_path, n=50, per_level=False)
    counts = Counter(e.rating for e in found.features)
    assert sum(counts.values()) == 50
    assert counts[1] > counts[4] + counts[5], "most features are rated 1"
    assert counts[1] > 15


def test_neither_order_nor_codes_depend_on_ratings_or_on_the_order_of_features(
    machine: dict[Key, Explanation], tmp_path: Path
) -> None:
    """Only features that are rated at all are drawn, all of them here."""
    found = export_sheet(contexts(machine), machine, tmp_path / "a", n=1000)
    assert len(found.features) == 133
    rng = random.Random(3)
    keys = [k for k in machine if machine[k].rating]
    others = {k: explanation(k, rng.randint(1, 5)) for k in rng.sample(keys, len(keys))}
    export_sheet(contexts(others), others, tmp_path / "b", n=1000)
    for name in ("sheet.html", "sheet.csv", "README.txt"):
        assert (tmp_path / "a" / "sheet" / name).read_bytes() == (tmp_path / "b" / "sheet" / name).read_bytes()
    assert [e.latent for e in found.features] != sorted(e.latent for e in found.features)
    first = [e.rating for e in found.features[:66]]
    assert abs(np.mean(first) - np.mean([e.rating for e in found.features[66:]])) < 0.6


def test_another_seed_draws_others_and_gives_other_codes(machine: dict[Key, Explanation], tmp_path: Path) -> None:
    a, b = (export_sheet(contexts(machine), machine, tmp_path / str(s), n=50, seed=s) for s in (0, 1))
    drawn = [{(e.sae, e.latent): e.code for e in key.features} for key in (a, b)]
    assert set(drawn[0]) != set(drawn[1])
    assert not set(drawn[0].values()) & set(drawn[1].values())
    assert a.sheet != b.sheet


def test_codes_depend_on_the_contexts_shown(machine: dict[Key, Explanation], tmp_path: Path) -> None:
    """A sheet of another scan, with the same features, cannot be taken for this one."""
    sets = contexts(machine)
    a = export_sheet(sets, machine, tmp_path / "a")
    for key, found in sets.items():
        top = tuple(replace(c, tokens=("other", *c.tokens[1:])) for c in found.explain.top)
        sets[key] = replace(found, explain=replace(found.explain, top=top))
    b = export_sheet(sets, machine, tmp_path / "b")
    assert not {e.code for e in a.features} & {e.code for e in b.features}


def test_the_texts_shown(tmp_path: Path) -> None:
    """Five top texts, one of each of three levels, the strongest first; none of the held-out ones, none silent."""
    key = ("s", 1)
    export_sheet({key: feature(key)}, {key: explanation(key, 3)}, tmp_path)
    (row,) = table(tmp_path / "sheet" / "sheet.csv")
    lines = row["contexts"].split("\n")
    assert [line.split(".")[0] for line in lines] == [str(i) for i in range(1, 9)]
    assert [bool(re.search("⟪", line)) for line in lines] == [True] * 6 + [False] * 2, "levels 5 and 2 are weak"


def test_features_that_cannot_be_shown_or_compared_are_counted(tmp_path: Path) -> None:
    given = ratings({5: 4, None: 3})
    sets = contexts(given)
    keys = list(given)
    del sets[keys[0]]
    sets[keys[1]] = replace(sets[keys[1]], explain=ContextHalf())
    sets["more", 9] = feature(("more", 9))
    found = export_sheet(sets, given, tmp_path)
    assert [(e.sae, e.latent) for e in found.features] in ([keys[2], keys[3]], [keys[3], keys[2]])
    assert found.left_out == {"without a text in which it fires": 2, "without a rating": 4}


def test_statistical_ratings_do_too(tmp_path: Path) -> None:
    given = {("s", i): Rating(sae="s", latent=i, rating=4, why="by numbers") for i in range(3)}
    assert export_sheet(contexts(given), given, tmp_path).machine == "statistical"


def test_a_key_is_not_written_over(machine: dict[Key, Explanation], sheet: SheetKey, tmp_path: Path) -> None:
    before = (tmp_path / "out" / "key.json").read_bytes()
    export_sheet(contexts(machine), machine, tmp_path / "out", n=50)
    for change in ({"n": 49}, {"n": 50, "seed": 1}):
        with pytest.raises(ConfigError, match="key of another sheet"):
            export_sheet(contexts(machine), machine, tmp_path / "out", **change)
    worse = {k: explanation(k, 1) for k in machine}
    with pytest.raises(ConfigError, match="key of another sheet"):
        export_sheet(contexts(machine), worse, tmp_path / "out", n=50)
    assert (tmp_path / "out" / "key.json").read_bytes() == before


def test_what_cannot_be_exported(machine: dict[Key, Explanation], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 features"):
        export_sheet(contexts(machine), machine, tmp_path, n=0)
    with pytest.raises(DataError, match="no feature has both"):
        export_sheet(contexts(machine), {}, tmp_path)
    with pytest.raises(DataError, match="no feature has both"):
        export_sheet({}, machine, tmp_path)
    assert not list(tmp_path.iterdir())


# Agreement


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_is_that_of_scikit_learn(weights: Weights) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = some(int(rng.integers(4, 120)), seed)
        cells = np.zeros((5, 5))
        np.add.at(cells, (np.asarray(a) - 1, np.asarray(b) - 1), 1.0)
        if len(set(a)) < 2 or len(set(b)) < 2:
            continue
        expected = cohen_kappa_score(a, b, labels=[1, 2, 3, 4, 5], weights=None if weights == "none" else weights)
        assert kappa(cells, weights) == pytest.approx(expected, abs=1e-12)


def test_agreement_is_what_counting_gives(tmp_path: Path) -> None:
    a, b = some(90)
    found = agreement(tmp_path, a, b).overall
    distance = np.abs(np.subtract(a, b))
    assert (found.n, found.n_features) == (90, 90)
    assert found.exact.value == pytest.approx((distance == 0).mean())
    assert found.within_one.value == pytest.approx((distance <= 1).mean())
    relevant = [(x == 5, y == 5) for x, y in zip(a, b, strict=True)]
    assert found.relevant.value == pytest.approx(np.mean([x == y for x, y in relevant]))
    assert found.relevant_kappa.value == pytest.approx(cohen_kappa_score(*zip(*relevant, strict=True)))
    for name, weights in (("kappa", None), ("kappa_linear", "linear"), ("kappa_quadratic", "quadratic")):
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(cohen_kappa_score(a, b, labels=[1, 2, 3, 4, 5], weights=weights))
        assert estimate.low < estimate.value < estimate.high
    for i in range(1, 6):
        mine = [y for x, y in zip(a, b, strict=True) if x == i]
        assert found.confusion[i - 1] == tuple(mine.count(j) for j in range(1, 6))
        assert found.by_level[i].value == pytest.approx(mine.count(i) / len(mine))


def test_full_agreement(tmp_path: Path) -> None:
    a, _ = some(50)
    found = agreement(tmp_path, a, a).overall
    for name in ("exact", "within_one", "relevant"):
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == (1.0, pytest.approx(0.025 ** (1 / 50)), 1.0), name
    for name in ("relevant_kappa", "kappa", "kappa_linear", "kappa_quadratic"):
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None), name
        assert estimate.reason == "no interval: all resamples give the same"


def test_intervals_shrink_with_features_and_hold_the_truth() -> None:
    """Coverage of the 95 % interval of exact agreement over many draws of 60 features from 2,000."""
    a, b = some(2000)
    pairs = [Pair(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    truth = compare("a", "b", pairs, draws=50)
    held = 0
    for seed in range(60):
        sample = random.Random(seed).sample(pairs, 60)
        few = compare("a", "b", sample, draws=200, seed=seed).kappa_quadratic
        held += few.low <= truth.kappa_quadratic.value <= few.high
        assert few.high - few.low > 2 * (truth.kappa_quadratic.high - truth.kappa_quadratic.low)
    assert held >= 50


def test_two_who_say_the_same_count_as_one(tmp_path: Path) -> None:
    """Features are resampled, not ratings: asking the same person twice narrows nothing."""
    a, b = some(60)
    key = key_of(a)
    rows = [(e.code, r) for e, r in zip(key.features, b, strict=True)]
    one, two = fill(tmp_path / "one.csv", rows, "x"), fill(tmp_path / "two.csv", rows, "y")
    single, double = import_sheet([one], key), import_sheet([one, two], key)
    assert double.overall.n == 120
    assert double.overall.n_features == 60
    for name in ("exact", "kappa_linear"):
        s, d = getattr(single.overall, name), getattr(double.overall, name)
        assert (s.value, s.low, s.high) == pytest.approx((d.value, d.low, d.high))
    assert double.between[0].kappa.value == 1.0


def test_several_raters(tmp_path: Path) -> None:
    a, b = some(40)
    _, c = some(40, seed=7)
    partly: list[int | None] = [r if i % 2 else None for i, r in enumerate(c)]
    found = agreement(tmp_path, a, b, partly)
    assert [(r.name, r.rated, r.not_rated) for r in found.raters] == [("rater0", 40, 0), ("rater1", 20, 20)]
    assert [c.second for c in found.by_rater] == ["rater0", "rater1"]
    assert found.overall.n == 60
    (between,) = found.between
    assert (between.first, between.second, between.n) == ("rater0", "rater1", 20)
    assert between.exact.value == pytest.approx(np.mean([x == y for x, y in zip(b[1::2], c[1::2], strict=True)]))
    assert found.features[1].raters == {"rater0": b[1], "rater1": c[1]}
    assert found.features[0].raters == {"rater0": b[0]}
    assert found.features[0].comments == {"rater0": "by 0", "rater1": "by 1"}


def test_the_population_is_not_the_sheet() -> None:
    """Level 5 is right on half, level 1 always; of 100 features 90 have level 1."""
    pairs = [Pair(f"a{i}", 5, 5 if i % 2 else 3) for i in range(10)] + [Pair(f"b{i}", 1, 1) for i in range(10)]
    found = population_agreement(pairs, {5: 10, 1: 90})
    assert found.value == pytest.approx(0.95)
    assert found.low < 0.95 < found.high
    assert compare("m", "r", pairs).exact.value == pytest.approx(0.75)
    missing = population_agreement(pairs, {5: 10, 1: 90, 3: 1})
    assert (missing.value, missing.reason) == (None, "of some level with features none was rated")


@pytest.mark.parametrize(
    ("right", "agree", "fail"),
    [(100, "pass", "pass"), (95, "pass", "pass"), (81, "undecided", "pass"), (80, "undecided", "pass"),
     (70, "warn", "undecided"), (69, "warn", "undecided"), (40, "warn", "warn"), (0, "warn", "warn")],
)  # fmt: skip
def test_thresholds(right: int, agree: str, fail: str) -> None:
    pairs = [Pair(str(i), 1 + i % 5, 1 + (i + (i >= right)) % 5) for i in range(100)]
    first, second = checks(compare("m", "r", pairs, draws=100))
    assert (first.status, second.status) == (agree, fail)
    assert first.value.value == pytest.approx(right / 100)
    assert second.value.value == pytest.approx(1 - right / 100)
    assert second.value.low == pytest.approx(1 - first.value.high)
    holds = "the interval holds the threshold"
    assert [c.note for c in (first, second)] == [holds * (status == "undecided") for status in (agree, fail)]


@pytest.mark.parametrize(("n", "right", "agree", "fail"), [
    (3, 3, "undecided", "undecided"), (99, 99, "undecided", "undecided"), (30, 29, "undecided", "undecided"),
    (99, 1, "warn", "warn"), (3, 0, "warn", "undecided"), (1, 1, "undecided", "undecided"),
])  # fmt: skip
def test_few_features_never_pass(n: int, right: int, agree: str, fail: str) -> None:
    pairs = [Pair(str(i), 1 + i % 5, 1 + (i + (i >= right)) % 5) for i in range(n)]
    found = checks(compare("m", "r", pairs, draws=100))
    assert [c.status for c in found] == [agree, fail]
    assert all(f"on {n} features, not 100" in c.note for c in found)


def test_shares_at_the_ends_have_exact_intervals() -> None:
    """Clopper and Pearson: of three features that agree, the share of all that do may be 29 %."""
    low = {n: binomtest(n, n).proportion_ci(method="exact").low for n in (3, 4, 7)}
    pairs = [Pair(f"a{i}", 5, 5) for i in range(3)] + [Pair(f"b{i}", 1, 2) for i in range(4)]
    found = compare("m", "r", pairs * 2)  # two raters of one mind are no more features
    assert (found.by_level[5].low, found.by_level[5].high) == (pytest.approx(low[3]), 1.0)
    assert (found.by_level[1].low, found.by_level[1].high) == (0.0, pytest.approx(1 - low[4]))
    assert (found.within_one.low, found.within_one.high) == (pytest.approx(low[7]), 1.0)
    assert 0 < found.exact.low < found.exact.value < found.exact.high < 1
    assert found.by_level[5].n == found.exact.n == 14
    alone = compare("m", "r", [Pair("a", 5, 5)])
    assert (alone.exact.value, alone.exact.low, alone.exact.reason) == (1.0, pytest.approx(0.025), "")
    undecided = checks(compare("m", "r", [Pair("a", 5, 5), Pair("a", 5, 4)]))
    assert [c.status for c in undecided] == ["undecided"] * 2
    assert all("no interval" in c.note for c in undecided)


def test_a_heavy_level_seen_rarely_widens_the_population() -> None:
    level_5, level_1 = [Pair(f"a{i}", 5, 5) for i in range(40)], [Pair(f"b{i}", 1, 1) for i in range(4)]
    found = population_agreement(level_5 + level_1, {5: 10, 1: 30})
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / (4 / 0.75)))
    even = population_agreement(level_5, {5: 40})
    assert even.low == pytest.approx(0.025 ** (1 / 40))


def test_what_is_undefined_says_why(tmp_path: Path) -> None:
    found = agreement(tmp_path, [1, 2, 3], [None, None, None])
    for estimate in (found.overall.exact, found.overall.kappa, found.population_exact, found.overall.by_level[1]):
        assert estimate.value is None
        assert estimate.reason == "no feature was rated by both"
    assert {c.status for c in found.checks} == {"not available"}
    one = agreement(tmp_path, [1, 2, 3, 4], [4, 4, 4, 4]).overall
    assert one.exact.value == 0.25
    assert one.kappa.value is one.kappa_linear.value is one.kappa_quadratic.value is None
    assert one.kappa.reason == "only one rating was given by rater0"
    assert one.relevant.value == 1.0
    assert one.relevant_kappa.reason == "only one rating was given by machine: llm (m) and by rater0"
    assert one.by_level[5].reason == "machine: llm (m) rated none of them 5"
    single = agreement(tmp_path, [5], [5], [4]).overall
    assert (single.exact.value, single.exact.low) == (0.5, None)
    assert "no interval" in single.exact.reason


# Files of raters


def test_bad_rows_are_named_and_not_used(tmp_path: Path) -> None:
    key = key_of([5, 4, 3, 2, 1, 5, 4])
    rows = [("F-0000", 5), ("F-9999", 3), ("F-0001", 6), ("F-0001", "four"), ("F-0002", 2.5), ("f-0003", " 2 "),
            ("F-0004", ""), ("F-0005", 1), ("F-0005", 1), ("F-0006", 4), ("F-0006", 5), ("", 3),
            ("F-0006", "")]  # fmt: skip
    found = import_sheet([fill(tmp_path / "ann.csv", rows)], key)
    assert [(b.row, b.code, b.reason) for b in found.bad_rows] == [
        (3, "F-9999", "no such code on this sheet"),
        (4, "F-0001", "the rating is no whole number from 1 to 5"),
        (5, "F-0001", "the rating is no whole number from 1 to 5"),
        (6, "F-0002", "the rating is no whole number from 1 to 5"),
        (10, "F-0005", "rated before, in row 9"),
        (11, "F-0006", "rated again with another rating: neither counts"),
        (12, "F-0006", "rated before, in row 11"),
        (13, "", "no such code on this sheet"),
    ]
    assert {f.code: f.raters["ann"] for f in found.features if f.raters} == {"F-0000": 5, "F-0003": 2, "F-0005": 1}
    assert [(r.rated, r.not_rated) for r in found.raters] == [(3, 4)]
    assert {b.rater for b in found.bad_rows} == {"ann"}


WRITERS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda t: t.encode(),
    "with a mark": lambda t: t.encode("utf-8-sig"),
    "utf-16": lambda t: t.replace(",", "\t").encode("utf-16"),
    "ansi": lambda t: t.encode("cp1252"),
    "semicolons": lambda t: t.replace(",", ";").encode(),
    "tabs and lines of Windows": lambda t: t.replace(",", "\t").replace("\n", "\r\n").encode(),
    "quoted": lambda t: "".join(",".join(f'"{c}"' for c in line.split(",")) + "\r\n" for line in t.splitlines()).encode(
        "utf-8-sig"
    ),
    "columns in another order": lambda t: "\n".join(
        ",".join(reversed(line.split(","))) for line in t.splitlines()
    ).encode(),
    "empty lines": lambda t: (t.replace("\n", "\n\n") + ",,\n").encode(),
    "capitals": lambda t: t.replace("code", "Code ").replace("rating", "RATING").replace("F-", "f-").encode(),
    "numbers with a decimal": lambda t: re.sub(r",([1-5]),", r",\1.0,", t).encode(),
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_what_spreadsheets_make_of_it(writer: str, tmp_path: Path) -> None:
    key = key_of([1, 2, 3, 4, 5])
    text = "code,rating,comment\n" + "".join(f"{e.code},{e.rating},déjà\n" for e in key.features)
    (tmp_path / "ann.csv").write_bytes(WRITERS[writer](text))
    found = import_sheet([tmp_path / "ann.csv"], key, draws=20)
    assert not found.bad_rows
    assert found.overall.exact.value == 1.0
    assert {f.comments["ann"] for f in found.features} == {"déjà"}


def test_the_exported_table_comes_back(sheet: SheetKey, tmp_path: Path) -> None:
    """Filled in by a spreadsheet program that keeps the contexts."""
    rows = table(tmp_path / "out" / "sheet" / "sheet.csv")
    for row, entry in zip(rows, sheet.features, strict=True):
        row["rating"] = str(entry.rating)
    with (tmp_path / "ann.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    found = import_sheet([tmp_path / "ann.csv"], SheetKey.load(tmp_path / "out" / "key.json"), draws=20)
    assert (found.overall.n, found.overall.exact.value, found.bad_rows) == (50, 1.0, ())
    assert found.population_exact.value == 1.0
    empty = import_sheet([tmp_path / "out" / "sheet" / "sheet.csv"], sheet, draws=20)
    assert empty.overall.exact.value is None
    assert empty.raters[0].not_rated == 50


def test_raters_whose_files_have_the_same_name(tmp_path: Path) -> None:
    key = key_of([1, 2, 3])
    files = []
    for i, name in enumerate(("a", "b", "c")):
        (tmp_path / name).mkdir()
        files.append(fill(tmp_path / name / "sheet.csv", [("F-0000", i + 1)]))
    assert [r.name for r in import_sheet(files, key, draws=20).raters] == ["sheet", "sheet (2)", "sheet (3)"]


def test_the_same_file_twice_is_no_second_rater(tmp_path: Path) -> None:
    file = fill(tmp_path / "ann.csv", [("F-0000", 1)])
    (tmp_path / "bob.csv").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="the same sheet as"):
        import_sheet([file, tmp_path / "bob.csv"], key_of([1]))


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "lacks a column"), (b"code,comment\nF-0000,x\n", "lacks a column"), (b"PK\x03\x04\x00", "lacks a column|CSV"),
    (b"code,rating,rating\nF-0000,1,2\n", "or has two"), (b"code,rating\nF-7777,1\nF-8888,\n", "none of its codes"),
])  # fmt: skip
def test_files_that_are_no_sheet(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "ann.csv").write_bytes(content)
    with pytest.raises(DataError, match=problem) as e:
        import_sheet([tmp_path / "ann.csv"], key_of([1, 2]))
    assert e.value.where.endswith("ann.csv")
    assert e.value.fix


def test_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rating sheet"):
        import_sheet([], key_of([1]))
    with pytest.raises(DataError, match="cannot be read"):
        import_sheet([tmp_path / "nothing.csv"], key_of([1]))


def test_keys_that_are_none(sheet: SheetKey, tmp_path: Path) -> None:
    good = json.loads((tmp_path / "out" / "key.json").read_text())
    twice = good | {"features": good["features"][:1] * 2}
    bad = [good | {"format_version": 2}, good | {"more": 1}, twice, {}, [],
           good | {"features": [good["features"][0] | {"rating": 6}]}]  # fmt: skip
    for content in bad:
        (tmp_path / "key.json").write_text(json.dumps(content))
        with pytest.raises(FormatError, match="key"):
            SheetKey.load(tmp_path / "key.json")
    (tmp_path / "key.json").write_bytes(b"\xff{")
    with pytest.raises(FormatError, match="not the key of a rating sheet"):
        SheetKey.load(tmp_path / "key.json")
    with pytest.raises(FormatError, match="cannot be read"):
        SheetKey.load(tmp_path / "nothing.json")
