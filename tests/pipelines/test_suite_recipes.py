"""Recipes of suites: the published settings parse, and run when they are shrunk to a tiny model of the same kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seamark.errors import ConfigError
from seamark.pipelines.recipe import check_data
from seamark.pipelines.suite import SuiteRecipe, load_suite_recipe, run_suite
from seamark.sae import SparseAutoencoder
from tiny import tiny_folder
from tiny_run import REPOSITORY, call, the_error, write_pairs

RECIPES = REPOSITORY / "recipes"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Qwen2 with the 36 blocks that the recipes name."""
    return tiny_folder(tmp_path_factory.mktemp("qwen"), "qwen2", "lm", num_hidden_layers=36, hidden_size=64)


def shrunk(folder: Path, model: str) -> dict[str, Any]:
    """What a test changes: the model, the texts, where it runs."""
    text = folder / "general.jsonl"
    rows = [{"text": f"The weather was fine on day {i}; we walked to the port and saw {i} ships."} for i in range(30)]
    text.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": 3}]), encoding="utf-8")
    return {
        "model": model, "out": str(folder / "run"),
        "data": {"texts": {"general": [str(text)]}, "pairs": {"safety": write_pairs(folder / "pairs", 12)["safety"]}},
        "training": {"precision": "fp32", "log_every": 1},
    }  # fmt: skip


def test_safe_sail_is_what_the_paper_says() -> None:
    recipe = load_suite_recipe(RECIPES / "safe-sail-qwen2.5-3b.yaml")
    suite = recipe.suite("none")
    assert recipe.model == "Qwen/Qwen2.5-3B-Instruct"
    assert list(suite) == [f"layers.{i}.mlp-topk_relu200-x10" for i in (0, 8, 17, 26, 35)]
    for spec in suite.values():
        config = spec.config(2048, "m", str(spec.hookpoint))
        assert (config.d_sae, config.k, config.activation) == (20480, 200, "topk_relu")
        assert spec.fit(recipe.stages[0]).loss == "squared"


def test_the_sweep_has_all_three_kinds_on_one_hookpoint() -> None:
    suite = load_suite_recipe(RECIPES / "safe-sail-sweep.yaml").suite("none")
    assert {spec.hookpoint for spec in suite.values()} == {"layers.17.mlp"}
    assert {spec.activation for spec in suite.values()} == {"topk_relu", "jumprelu", "relu"}
    assert 200 in {spec.k for spec in suite.values() if spec.activation == "topk_relu"}
    assert {spec.bandwidth for spec in suite.values() if spec.activation == "jumprelu"} == {0.001}


@pytest.mark.parametrize("name", ["safe-sail-qwen2.5-3b", "safe-sail-sweep"])
def test_a_recipe_runs_on_a_tiny_model(name: str, qwen: str, tmp_path: Path) -> None:
    recipe = load_suite_recipe(RECIPES / f"{name}.yaml", shrunk(tmp_path, qwen))
    trained = run_suite(recipe)
    out = Path(recipe.out)
    for sae_id, spec in recipe.suite("none").items():
        sae = SparseAutoencoder.from_pretrained(out / "saes" / sae_id)
        assert (sae.config.d_in, sae.config.d_sae, sae.config.hookpoint) == (64, 640, spec.hookpoint)
        assert trained.quality[sae_id] is not None
        if sae.config.k:
            assert trained.quality[sae_id].l0 <= sae.config.k  # type: ignore[union-attr]
    assert [s["name"] for s in trained.stages] == ["general", "safety"]
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 1


def test_run_knows_both_kinds_of_recipe(qwen: str, tmp_path: Path) -> None:
    changes = shrunk(tmp_path, qwen) | {"hookpoints": ["layers.1"], "variants": [{"k": [4, 8], "d_sae": 96}]}
    recipe = check_data(SuiteRecipe, changes, "test")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json(exclude_none=True))  # JSON is YAML
    code, out, err = call("run", file, "--json")
    assert code == 0, err
    assert set(json.loads(out)["quality"]) == {"layers.1-topk4-d96", "layers.1-topk8-d96"}
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(out)
    assert "colour: extra inputs" in the_error(*call("run", file, "--set", "colour=blue"))


@pytest.mark.parametrize(("changes", "problem"), [
    ({"variants": [{"kk": 1}]}, r"variant 1: kk: Extra inputs"),
    ({"variants": []}, r"variants: list should have at least 1 item"),
    ({"stages": []}, r"stages: "),
    ({"data": {"texts": {"third": ["x.txt"]}}}, r"data\.texts names 'third', the stages are general, safety"),
    ({"training": {"buffer": 3}}, r"training\.buffer: extra inputs"),
    ({"target": "danger"}, r"no pair in the target group 'danger'"),
    ({"track": "mlflow"}, r"track: input should be 'trackio' or 'wandb'"),
])  # fmt: skip
def test_recipes_that_make_no_sense(changes: dict[str, Any], problem: str, qwen: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        run_suite(check_data(SuiteRecipe, {"model": qwen, "out": str(tmp_path / "run")} | changes, "test"))
    assert not (tmp_path / "run").exists()
