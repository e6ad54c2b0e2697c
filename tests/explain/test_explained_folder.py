"""The folder that `seamark explain` leaves, however it was broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seamark.errors import ConfigError, DataError, FormatError, RunError
from seamark.explain.explaining import NO_CONTEXTS
from seamark.explain.folder import (
    CONTEXTS,
    EXPLANATIONS,
    MANIFEST,
    Manifest,
    Settings,
    check_any,
    check_folder,
    drafts,
    earlier,
    keep_good,
    publish,
    read_manifest,
)
from seamark.explain.records import Explanation
from seamark.explain.taxonomy import Taxonomy
from seamark.features.context_choice import ContextConfig

FEATURES = {"s": [3, 1]}


def settings(**changes: Any) -> Settings:
    about = {"scan": "scan 1", "contexts": ContextConfig(), "llm": "m", "language": "en",
             "taxonomy": Taxonomy.default()}  # fmt: skip
    return Settings.of(**(about | changes), promoted=False)


def explanation(latent: int, text: str | None = "Bread.", reason: str = "time-out", **more: Any) -> Explanation:
    return Explanation(sae="s", latent=latent, text=text, reason="" if text else reason, rating_reason="none",
                       language="en", **({"method": "llm", "model": "m"} | more))  # fmt: skip


def write(folder: Path, some: Settings, features: dict[str, list[int]], text: str) -> Manifest:
    with drafts(folder) as draft:
        (draft / CONTEXTS).write_text(f"contexts of {text}")
        found = [explanation(i, text) for of_sae in features.values() for i in of_sae]
        return publish(draft, folder, found, some, features, Path("runs/scan"))


def test_what_belongs_together(tmp_path: Path) -> None:
    manifest = write(tmp_path, settings(), FEATURES, "Bread.")
    assert check_folder(tmp_path) == read_manifest(tmp_path) == manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONTEXTS, MANIFEST, EXPLANATIONS]
    assert list(earlier(tmp_path, settings(), FEATURES)) == [("s", 3), ("s", 1)]
    assert check_folder(tmp_path / "none") is None
    assert earlier(tmp_path / "none", settings(), FEATURES) == {}
    other = tmp_path / "other"
    assert write(other, settings(), FEATURES, "Ships.").key == manifest.key
    for name in (CONTEXTS, EXPLANATIONS):  # of another run, though with the same settings
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes((other / name).read_bytes())
        with pytest.raises(DataError, match=f"{name} and {MANIFEST} do not belong together"):
            check_folder(tmp_path)
        assert earlier(tmp_path, settings(), FEATURES) == {}
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match="do not belong together"):
            check_folder(tmp_path)
        (tmp_path / name).write_bytes(before)


@pytest.mark.parametrize(
    "changes",
    [{"scan": "scan 2"}, {"contexts": ContextConfig(seed=1)}, {"contexts": ContextConfig(group="chat")},
     {"llm": "other"}, {"llm": None}, {"language": "zh"},
     {"taxonomy": Taxonomy.model_validate({"domains": {"kitchen": {}}})}],
)  # fmt: skip
def test_other_settings_have_another_key_and_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    key = write(tmp_path / "a", settings(), FEATURES, "Bread.").key
    assert write(tmp_path / "b", settings(**changes), FEATURES, "Bread.").key != key
    with pytest.raises(ConfigError, match=r"made in another way \(other .*Choose another --out.*--overwrite"):
        earlier(tmp_path / "a", settings(**changes), FEATURES)
    assert earlier(tmp_path / "a", settings(**changes), FEATURES, overwrite=True) == {}


def test_other_features(tmp_path: Path) -> None:
    key = write(tmp_path, settings(), FEATURES, "Bread.").key
    assert write(tmp_path / "b", settings(), {"s": [1, 3]}, "Bread.").key != key
    assert len(earlier(tmp_path, settings(), {"s": [9, 1, 3], "t": [1]})) == 2
    for fewer in ({"s": [3]}, {"t": [3, 1]}):
        with pytest.raises(ConfigError, match="features that are not asked for now"):
            earlier(tmp_path, settings(), fewer)
        assert len(earlier(tmp_path, settings(), fewer, overwrite=True)) == 2


@pytest.mark.parametrize("done", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_broken_off_at_any_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, first: bool) -> None:
    """Whatever files are there: old ones alone, new ones alone, or an error; and the same command can go on."""
    old = None if first else write(tmp_path, settings(), FEATURES, "Bread.")
    real, count = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        if Path(target).parent == tmp_path:
            if count[0] == done:
                raise KeyboardInterrupt
            count[0] += 1
        return real(self, target)

    new = settings(llm="other")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if done < 3:
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, new, {"s": [7]}, "Ships.")
        else:
            write(tmp_path, new, {"s": [7]}, "Ships.")
    assert not list(tmp_path.glob(".explain-*"))
    if done in (1, 2):
        with pytest.raises(DataError, match="do not belong together"):
            check_folder(tmp_path)
    else:
        found = check_folder(tmp_path)
        assert (found.settings if found else None) == (new if done else old and old.settings)
    assert list(earlier(tmp_path, new, {"s": [7]}, overwrite=done == 0)) == ([("s", 7)] if done == 3 else [])
    write(tmp_path, new, {"s": [7]}, "Ships.")
    assert check_folder(tmp_path) is not None


def test_damaged_manifests_and_files_of_others(tmp_path: Path) -> None:
    for text in ("{}", "[", '{"key": 1}'):
        (tmp_path / MANIFEST).write_text(text)
        for act in (check_folder, lambda folder: earlier(folder, settings(), FEATURES)):
            with pytest.raises(FormatError, match="not the manifest of explanations"):
                act(tmp_path)
        assert earlier(tmp_path, settings(), FEATURES, overwrite=True) == {}
    later = write(tmp_path, settings(), FEATURES, "Bread.").model_copy(update={"format_version": 9})
    (tmp_path / MANIFEST).write_text(later.model_dump_json())
    with pytest.raises(FormatError, match="format version 9"):
        check_folder(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ConfigError, match=f"holds {CONTEXTS}, and no {MANIFEST} says"):
        earlier(tmp_path, settings(), FEATURES)
    assert earlier(tmp_path, settings(), FEATURES, overwrite=True) == {}


def test_good_ones_are_kept() -> None:
    old = {("s", 1): explanation(1, "Bread."), ("s", 2): explanation(2, None), ("s", 3): explanation(3, "Flour.")}
    new = {("s", i): e for i, e in enumerate([explanation(1, None), explanation(2, None, "budget reached"),
                                              explanation(3, "Yeast."), explanation(4, None)], 1)}  # fmt: skip
    found, kept = keep_good(new, old)
    assert list(found) == list(new)
    assert kept == [("s", 1)]
    assert found == new | {("s", 1): old["s", 1]}


def test_nothing_at_all() -> None:
    failed = [explanation(1, None), explanation(2, None, "cut off"), explanation(3, None, "cut off"),
              explanation(4, None, NO_CONTEXTS)]  # fmt: skip
    with pytest.raises(RunError, match=r"^m: none of 3 requests brought an explanation \(cut off\)\. Nothing was"):
        check_any(failed)
    check_any([*failed, explanation(5)])
    check_any([explanation(4, None, NO_CONTEXTS)])
    check_any([explanation(4, None, "no words", method="lexical", model=None)])
    check_any([])
