"""Editing: exact counts, one group only, and every edit undone from its files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamark.audit.editing import (
    Edit,
    denoise,
    edit_count,
    inject_noise,
    poison,
    undo,
    undo_file,
    write_edit,
)
from seamark.audit.manifest import EditManifest
from seamark.audit.rows import read_jsonl, to_jsonl
from seamark.errors import ConfigError, DataError, FormatError
from seamark.text.pairs import Message, Pairs, PreferencePair
from seamark.text.reading import read_pairs


@dataclass
class Scores:
    values: dict[str, float]
    method: str = "safer"


@dataclass
class Fake:
    """Pairs with raw rows in three shapes: direct with an extra field, foreign columns, and none at all."""

    n: int = 20
    rows: list[dict[str, Any]] = field(default_factory=list)

    def pairs(self) -> Pairs:
        items, raw = [], {}
        for i in range(self.n):
            pair = PreferencePair(
                id=f"p{i}", group="safety" if i % 4 else "chat", prompt=f"q{i}", chosen=f"good {i}\u2028é",
                rejected=f"bad {i}", category="c" if i % 2 else "",
            )  # fmt: skip
            row: dict[str, Any] = {
                "rejected": pair.rejected,
                "chosen": pair.chosen,
                "note": {"n": i, "x": None},
            }
            row |= {"prompt": pair.prompt, "score": 0.5 * i}
            if i % 3 == 1:
                row = {"question": pair.prompt, "a": pair.chosen, "b": pair.rejected, "better": 0, "id": i}
            raw[pair.id] = row
            items.append(pair)
            self.rows.append(row)
        return Pairs(tuple(items), raw=raw)


def scores_for(pairs: Pairs, seed: int = 0) -> Scores:
    rng = random.Random(seed)
    return Scores({p.id: rng.random() for p in pairs})


def edits(pairs: Pairs) -> list[Edit]:
    scores = scores_for(pairs)
    return [poison(pairs, scores, 0.2), denoise(pairs, scores, 0.4), inject_noise(pairs, 0.5, "chat", 3)]


@pytest.mark.parametrize(
    ("rate", "size", "count"),
    [(0.145, 100, 15), (0.005, 100, 1), (0.025, 20, 1), (0.05, 10, 1), (0.04, 12, 0), (0.999, 3, 3)],
)
def test_edit_count_rounds_half_up_in_decimal(rate: float, size: int, count: int) -> None:
    assert edit_count(rate, size) == count


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan"), float("inf")])
def test_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        edit_count(rate, 10)


def test_poison_flips_the_highest_of_the_group_and_keeps_order() -> None:
    pairs = Fake().pairs()
    scores = Scores({p.id: float(i) for i, p in enumerate(pairs)})
    edit = poison(pairs, scores, 0.2)
    assert edit.manifest.flipped == ("p17", "p18", "p19")
    assert edit.pairs.ids == pairs.ids
    changed = [b.id for a, b in zip(pairs, edit.pairs, strict=True) if a != b]
    assert changed == ["p17", "p18", "p19"]
    assert edit.pairs[17].chosen == pairs[17].rejected


def test_denoise_removes_the_lowest_of_the_group() -> None:
    pairs = Fake().pairs()
    edit = denoise(pairs, Scores({p.id: float(i) for i, p in enumerate(pairs)}), 0.2)
    assert [r.row["id"] for r in edit.manifest.removed] == ["p1", "p2", "p3"]
    assert edit.manifest.edited_ids == ("p1", "p2", "p3")
    assert edit.pairs.ids == [i for i in pairs.ids if i not in {"p1", "p2", "p3"}]
    assert edit.manifest.n_edited == 3
    assert edit.manifest.group_size == 15


def test_choice_does_not_depend_on_order_even_in_ties() -> None:
    pairs = Fake().pairs()
    shuffled = pairs.with_items(random.Random(1).sample(list(pairs), len(pairs)))
    flat = Scores(dict.fromkeys(pairs.ids, 1.0))
    for edit in (lambda p: poison(p, flat, 0.4), lambda p: inject_noise(p, 0.4, seed=7)):
        assert sorted(edit(pairs).manifest.flipped) == sorted(edit(shuffled).manifest.flipped)
    assert inject_noise(pairs, 0.4, seed=1).manifest.flipped != inject_noise(pairs, 0.4, seed=2).manifest.flipped


def test_clear_errors() -> None:
    pairs = Fake().pairs()
    with pytest.raises(DataError, match=r"no pairs in group 'safe'.*safety"):
        inject_noise(pairs, 0.1, "safe")
    with pytest.raises(DataError, match="have no 'safer' score"):
        poison(pairs, Scores({"p1": 1.0}), 0.1)
    with pytest.raises(DataError, match="1 of 15 pairs"):
        poison(pairs, Scores({i: float("nan") if i == "p2" else 0.0 for i in pairs.ids}), 0.1)
    with pytest.raises(DataError, match="leaves none"):
        denoise(pairs, scores_for(pairs), 0.99)


def test_undo_of_pairs() -> None:
    pairs = Fake().pairs()
    for edit in edits(pairs):
        reordered = edit.pairs.with_items(random.Random(2).sample(list(edit.pairs), len(edit.pairs)))
        assert undo(edit.pairs, edit.manifest) == pairs
        assert undo(reordered, edit.manifest) == pairs
        with pytest.raises(FormatError):
            undo(edit.pairs[1:], edit.manifest)
        wrong = edit.pairs.with_items(p.flipped() if i == 4 else p for i, p in enumerate(edit.pairs))
        with pytest.raises(FormatError):
            undo(wrong, edit.manifest)


def test_undo_from_files_alone(tmp_path: Path) -> None:
    fake = Fake()
    pairs = fake.pairs()
    for number, edit in enumerate(edits(pairs)):
        edited, manifest = write_edit(edit, tmp_path / str(number))
        rows = list(read_jsonl(edited))
        assert [r["id"] for r in rows] == edit.pairs.ids
        assert all({"id", "group", "prompt", "chosen", "rejected"} <= r.keys() for r in rows)
        assert all("better" not in r for r in rows), "a stale label must not stand beside the new one"
        assert rows[0]["note"] == {"n": 0, "x": None}

        random.Random(3).shuffle(rows)
        edited.write_text(to_jsonl(rows), encoding="utf-8")
        out = tmp_path / str(number) / "restored.jsonl"
        restored = undo_file(edited, manifest, out)
        assert restored == fake.rows
        assert [list(r) for r in restored] == [list(r) for r in fake.rows], "fields in their order"
        assert list(read_jsonl(out)) == fake.rows
        chat = undo_file(edited, manifest, group="chat")
        assert chat == [r for r, p in zip(fake.rows, pairs, strict=True) if p.group == "chat"]


def test_edits_stack_and_unstack(tmp_path: Path) -> None:
    fake = Fake()
    pairs = fake.pairs()
    noisy = inject_noise(pairs, 0.3, seed=5)
    clean = denoise(noisy.pairs, scores_for(pairs), 0.3)
    second = write_edit(clean, tmp_path / "clean")
    first = write_edit(noisy, tmp_path / "noisy")
    back = undo_file(*second)
    noisy_rows = list(read_jsonl(first[0]))
    restored_noisy = tmp_path / "back.jsonl"
    # Unedited rows come back as first read, flipped ones as the noisy file has them.
    flipped = set(noisy.manifest.flipped)
    assert [r for r, p in zip(back, pairs, strict=True) if p.id in flipped] == [
        r for r in noisy_rows if r["id"] in flipped
    ]
    restored_noisy.write_text(to_jsonl(noisy_rows), encoding="utf-8")
    assert undo_file(restored_noisy, first[1]) == fake.rows
    assert undo(undo(clean.pairs, clean.manifest), noisy.manifest) == pairs


def test_manifest_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    pairs = Fake().pairs()
    edited, manifest = write_edit(poison(pairs, scores_for(pairs), 0.2), tmp_path / "a")
    other, _ = write_edit(denoise(pairs, scores_for(pairs), 0.4), tmp_path / "b")
    out = tmp_path / "out.jsonl"
    good = edited.read_text(encoding="utf-8")
    lines = good.split("\n")

    changed = json.loads(lines[2])
    changed["note"] = "mine"
    cases = {
        "missing": "\n".join(lines[1:]),
        "more than once": good + lines[0] + "\n",
        "not in the manifest": good + '{"id": "new"}\n',
        "not JSON": good + "{",
        "not a JSON object": good + "[1]\n",
        "row with id 'p2'": "\n".join([*lines[:2], json.dumps(changed), *lines[3:]]),
    }
    for message, content in cases.items():
        edited.write_text(content, encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            undo_file(edited, manifest, out)
    with pytest.raises(FormatError, match="does not fit"):
        undo_file(other, manifest, out)
    manifest.write_text('{"schema_version": 9}')
    with pytest.raises(FormatError, match="version 1"):
        undo_file(other, manifest, out)
    assert not out.exists()


def test_a_group_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    pairs = Fake().pairs()
    edited, manifest = write_edit(poison(pairs, scores_for(pairs), 0.2), tmp_path)
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"no pairs in group 'safty'.*chat, safety"):
        undo_file(edited, manifest, out, group="safty")
    assert out.read_text() == "mine"


def _without_id(plan: dict[str, Any]) -> None:
    del plan["removed"][0]["row"]["id"]


TAMPERED: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "layout index": ("layout that is not there", lambda m: m["rows"][0].__setitem__(2, 99)),
    "negative index": ("layout that is not there", lambda m: m["rows"][0].__setitem__(2, -1)),
    "no id": ("removed row has no id", _without_id),
    "unknown flipped": ("not in `rows`", lambda m: m.update(flipped=["zzz"])),
    "a row twice": ("more than once", lambda m: m["rows"].append(m["rows"][0])),
    "layouts": ("does not fit the row", lambda m: m.update(layouts=[["id", "prompt"]] * 2)),
    "a column dropped": ("does not fit the row", lambda m: m["layouts"][0].remove("note")),
    "layouts exchanged": ("does not fit the row", lambda m: m["layouts"].reverse()),
    "order": ("not the pairs it was written for", lambda m: m["rows"].reverse()),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_manifest_that_was_changed_is_refused(case: str, tmp_path: Path) -> None:
    problem, change = TAMPERED[case]
    pairs = Fake().pairs()
    edited, manifest = write_edit(denoise(pairs, scores_for(pairs), 0.4), tmp_path)
    plan = json.loads(manifest.read_text())
    change(plan)
    manifest.write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=problem):
        undo_file(edited, manifest, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("odd", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}"], ids=["deep", "number"])
def test_json_that_cannot_be_read_is_one_line(odd: str, tmp_path: Path) -> None:
    pairs = Fake().pairs()
    edited, manifest = write_edit(denoise(pairs, scores_for(pairs), 0.4), tmp_path)
    (tmp_path / "odd.json").write_text(odd)
    for files in ((tmp_path / "odd.json", manifest), (edited, tmp_path / "odd.json")):
        with pytest.raises(FormatError, match=r"odd\.json.*number too long, or nested too deeply"):
            undo_file(*files)


def test_the_manifest_of_a_stage_names_the_one_to_give(tmp_path: Path) -> None:
    pairs = Fake().pairs()
    edited, manifest = write_edit(
        denoise(pairs, scores_for(pairs), 0.4), tmp_path, "clean.jsonl", "clean-manifest.json"
    )
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "key": "k", "stage": "edits"}')
    with pytest.raises(FormatError, match=r"not the manifest of an edit.*clean-manifest\.json for clean\.jsonl"):
        undo_file(edited, tmp_path / "manifest.json")
    edited.write_text("")
    with pytest.raises(FormatError, match=r"does not fit.*clean-manifest\.json for clean\.jsonl"):
        undo_file(edited, manifest)


def test_manifest_round_trip_and_strictness(tmp_path: Path) -> None:
    pairs = Fake().pairs()
    edit = denoise(pairs, scores_for(pairs), 0.4)
    _, path = write_edit(edit, tmp_path)
    assert EditManifest.load(path) == edit.manifest
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"surprise": 1}))
    with pytest.raises(FormatError, match="surprise"):
        EditManifest.load(path)


FILES = {
    "direct": [{"id": i, "prompt": f"q {i}", "chosen": f"yes {i}", "rejected": f"no {i}", "source": None,
                "by": {"x": i}}
               for i in range(12)],
    "no_ids": [{"question": f"q {i}", "chosen": f"yes {i}", "rejected": f"no {i}", "stars": i / 2} for i in range(12)],
    "chats": [{"chosen": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"yes {i}"}],
               "rejected": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"no {i}"}],
               "score_chosen": 9} for i in range(12)],
    "transcripts": [{"chosen": f"\n\nHuman: q {i}\n\nAssistant: yes {i}", "rejected":
                     f"\n\nHuman: q {i}\n\nAssistant: no {i}"} for i in range(12)],
}  # fmt: skip


@pytest.mark.parametrize("shape", FILES)
def test_read_edit_write_read_undo(shape: str, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(to_jsonl(FILES[shape]), encoding="utf-8")
    pairs = read_pairs(safety=source)
    for number, edit in enumerate((poison(pairs, scores_for(pairs), 0.3), denoise(pairs, scores_for(pairs), 0.3))):
        edited, manifest = write_edit(edit, tmp_path / str(number))
        again = read_pairs(safety=edited)
        assert again.items == edit.pairs.items, "the edited file reads as the edited pairs, ids and all"
        restored = undo(again, EditManifest.load(manifest))
        assert restored == pairs
        assert undo_file(edited, manifest) == FILES[shape]
        if shape == "direct":
            assert all(row["by"] == {"x": row["id"]} for row in read_jsonl(edited)), "other fields stay where they are"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
texts = st.text(st.characters(codec=None), max_size=12) | st.just((Message("user", "hi\x00"), Message("a", "b")))


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.tuples(texts, texts, texts, st.booleans()), min_size=3, max_size=8),
    extra=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    rate=st.floats(0.01, 0.6),
    order=st.randoms(use_true_random=False),
)
def test_any_rows_come_back(contents, extra, rate, order, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    items, raw = [], {}
    for i, (prompt, chosen, rejected, is_direct) in enumerate(contents):
        pair = PreferencePair(f"i{i}", "safety", prompt, chosen, rejected)
        plain = pair.to_row()
        row = (
            {**extra, **{k: plain[k] for k in ("prompt", "chosen", "rejected")}} if is_direct else {"x": plain, **extra}
        )
        items.append(pair)
        raw[pair.id] = row
    pairs = Pairs(tuple(items), raw=raw)
    scores = Scores({p.id: order.random() for p in pairs})
    folder = tmp_path_factory.mktemp("any")
    for edit in (poison(pairs, scores, rate), denoise(pairs, scores, min(rate, 0.5))):
        edited, manifest = write_edit(edit, folder)
        rows = list(read_jsonl(edited))
        order.shuffle(rows)
        edited.write_text(to_jsonl(rows), encoding="utf-8")
        assert undo_file(edited, manifest) == list(raw.values())
