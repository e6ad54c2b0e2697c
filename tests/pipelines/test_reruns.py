"""Run again: nothing where nothing changed; where a setting or a file did, what depends on it and only that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seamark.pipelines.recipe import check_recipe
from seamark.pipelines.runner import run_safer
from seamark.run import Run
from tiny import tiny_model
from tiny_run import METHODS, Finished, tree, without_stages, write_model, write_pairs

Again = Callable[..., Run]
OFF = {"poison__rates": [], "denoise__rates": []}
WORLDS = ("clean", "noisy-0", "noisy-1")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def cells(kind: str, rate: float, seeds: tuple[int, ...] = (0, 1), methods: tuple[str, ...] = METHODS) -> set[str]:
    return {f"{kind}/{m}-{rate:g}-seed-{s}" for m in methods for s in seeds}


def check_edited_cells(finished: Finished, run: Run) -> None:
    """Of the experiments' cells, those whose edits changed were done again, and only those."""
    for cell in cells("poison", 0.2) | cells("denoise", 0.1):
        old, new = (manifest(root / cell)["config"] for root in (finished.folder, run.root))
        inputs = [manifest(root / cell)["inputs"] for root in (finished.folder, run.root)]
        assert inputs[0] == inputs[1]
        assert (cell in run.built) == (old != new), cell
        assert cell not in run.built or "random" not in cell


def test_a_second_run_does_nothing_and_says_so(
    finished: Finished, again: Again, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(name="tiny")  # the recipe in a result names its folder: this writes it for the copy
    before = tree(tmp_path / "run")
    capsys.readouterr()
    run = again()
    err = capsys.readouterr().err
    assert run.built == []
    assert "Nothing to do" in err
    assert "▸" not in err
    assert tree(tmp_path / "run") == before


def test_another_rate_reruns_its_cells_only(again: Again) -> None:
    assert set(again(poison__rates=[0.3]).built) == cells("poison", 0.3)
    both = again(poison__rates=[0.2, 0.3], denoise__rates=[0.1])
    assert both.built == []  # each was done in an earlier run
    rates = {r["rate"] for r in json.loads((both.root / "result.json").read_text())["poison"]}
    assert rates == {0.0, 0.2, 0.3}


def test_fewer_features_rerun_what_follows_from_them(finished: Finished, again: Again) -> None:
    run = again(features__count=1)
    rest = {b for b in run.built if not b.startswith(("poison/", "denoise/"))}
    assert rest == {"clean/effects", *(f"{w}/features" for w in WORLDS)}
    assert any(b.startswith(("poison/safer", "denoise/safer")) for b in run.built)
    check_edited_cells(finished, run)


def test_another_sae_leaves_the_reward_models_alone(finished: Finished, again: Again) -> None:
    run = again(sae__k=6)
    rest = {b for b in run.built if not b.startswith(("poison/", "denoise/"))}
    assert rest == {"clean/effects", *(f"{w}/{s}" for w in WORLDS for s in ("sae", "scan", "features"))}
    check_edited_cells(finished, run)


def test_the_content_of_general_texts_counts(again: Again, tmp_path: Path) -> None:
    texts = tmp_path / "general.txt"
    after_sae = {"clean/sae", "clean/scan", "clean/features", "clean/effects"}
    for i, built in enumerate((after_sae, set(), after_sae)):
        if i != 1:
            texts.write_text("".join(f"The harbour was fine, {j + i}. We walked home.\n\n" for j in range(20)))
        assert set(again(data__general_text=str(texts), **OFF).built) == built


def test_more_seeds_rerun_new_cells_only(again: Again) -> None:
    built = set(again(seeds=[0, 1, 2]).built)
    new = {"clean/reward-2", *(f"noisy-2/{s}" for s in ("data", "reward", "sae", "scan", "features"))}
    assert built == new | cells("poison", 0.2, (2,)) | cells("denoise", 0.1, (2,))


def test_other_weights_or_pairs_under_the_same_path_are_another_run(finished: Finished, again: Again) -> None:
    model, pairs = Path(finished.model) / "model.safetensors", Path(finished.pairs["chat"][0])
    kept = {f: f.read_bytes() for f in (model, pairs)}
    try:
        tiny_model("bert", "base", seed=1).save_pretrained(finished.model)
        built = set(again(**OFF).built)
        assert {"clean/reward-0", "clean/reward-1", "clean/sae", "clean/features"} <= built
        assert "data" not in built
        model.write_bytes(kept[model])
        pairs.write_bytes(kept[pairs].replace(b"brown", b"green"))
        assert {"data", "clean/reward-0", "clean/reward-1", "clean/sae"} <= set(again(**OFF).built)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_the_order_of_groups_counts(finished: Finished, again: Again) -> None:
    """The pairs' order is that of their groups, and the SAE reads them in it."""
    files = finished.pairs
    assert "data" in again(pairs={g: files[g] for g in reversed(files)}, **OFF).built


def test_the_folder_and_the_number_of_workers_do_not_count(again: Again) -> None:
    assert again(workers=2).built == []


def test_a_stage_with_a_missing_file_is_done_again(again: Again, tmp_path: Path) -> None:
    again()
    (tmp_path / "run" / "clean" / "effects" / "effects.json").unlink()
    assert again().built == ["clean/effects"]
    (tmp_path / "run" / "report.html").unlink()
    assert again().built == []
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_changed_run_ends_like_a_fresh_one(finished: Finished, again: Again, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sae__k": 6, "features__count": 3, "seeds": [1, 0, 2], "poison__rates": [0.1, 0.2]}
    changed = again(**changes)
    _, fresh = run_safer(check_recipe(finished.data(tmp_path / "fresh", **changes), "fresh"))
    assert without_stages(json.loads((changed.root / "result.json").read_text())) == without_stages(fresh)


def test_moved_data_give_the_same_model(finished: Finished, again: Again, tmp_path: Path) -> None:
    """Pairs and base under another path: what is recorded differs, what is computed does not."""
    model, pairs = write_model(tmp_path / "m"), write_pairs(tmp_path / "p")
    run = again(model=model, pairs=pairs, **OFF)
    assert manifest(run.root / "data")["outputs"]["train.jsonl"] == manifest(finished.folder / "data")["outputs"][
        "train.jsonl"
    ]  # fmt: skip
    assert manifest(run.root / "clean/reward-0")["digest"] == manifest(finished.folder / "clean/reward-0")["digest"]
