"""The whole recipe on tiny models: what it leaves behind, and that workers change nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from seamark.pipelines.recipe import check_recipe
from seamark.pipelines.runner import run_safer
from seamark.pipelines.tables import result_tables
from tiny_run import GROUPS, METHODS, N_SEEDS, Finished, recipe_data, write_model, write_pairs

STAGES = {"data", "noise", "reward", "sae", "scan", "features", "clean/effects", "poison", "denoise", "report"}
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr", "line", "rect", "path", "circle", "source"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "srcset", "data", "poster", "xlink:href")]
        if tag == "link" or (tag in ("use", "image") and "href" in found):
            self.fetched.append(found.get("href") or "")
        assert tag != "script"
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()


def check_report(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(not f or f.startswith(("data:", "#")) for f in page.fetched)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", text)
    assert len(page.ids) == len(set(page.ids))
    for heading in ("Safety features", "Poisoning", "Denoising", "Cost"):
        assert heading in text


def share(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def check_experiment(rows: list[dict[str, Any]], rate: float) -> None:
    wanted = {("none", 0.0, s) for s in range(N_SEEDS)} | {(m, rate, s) for m, s in product(METHODS, range(N_SEEDS))}
    assert len(rows) == len(wanted)
    assert {(r["method"], r["rate"], r["seed"]) for r in rows} == wanted
    for row in rows:
        assert set(row) == {"method", "rate", "seed", *GROUPS}
        assert all(share(row[g]) for g in GROUPS)


def check_result(folder: Path, result: dict[str, Any]) -> None:
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result
    assert set(result["reward"]["accuracy"]) == set(GROUPS)
    for of_group in ("accuracy", "length_baseline", "bag_of_words"):
        assert all(share(v) for v in result["reward"][of_group].values())
    assert result["reward"]["accuracy"]["safety"] > 0.7  # these labels can be learnt
    check_experiment(result["poison"], 0.2)
    check_experiment(result["denoise"], 0.1)
    effect = result["effect"]
    assert effect["low"] <= effect["D"] <= effect["high"]
    assert all(-1.0 <= effect[k] <= 1.0 for k in ("D", "low", "high"))
    assert 1 <= len(result["features"]) <= 6
    for feature in result["features"]:
        assert feature["sae"] == "sae"
        assert 0 <= feature["latent"] < 64
        assert feature["rating"] in range(1, 6)
        assert feature["sign"] * feature["score"] > 0
        assert isinstance(feature["direct_effect"], float) or feature["direct_effect_reason"]
    assert set(result["stages"]) == STAGES
    for measured in result["stages"].values():
        assert set(measured) == {"seconds", "peak_rss_mb"}
        assert measured["seconds"] > 0
        assert measured["peak_rss_mb"] > 0
    counts = result["data"]["groups"]
    assert {g: c["pairs"] for g, c in counts.items()} == {"safety": 36, "chat": 24}
    assert all(c["train"] + c["test"] == c["pairs"] for c in counts.values())
    assert result["data"]["rejected"] == 1
    assert {(r["method"], r["seed"]) for r in result["detection"]} == set(product(METHODS, range(N_SEEDS)))
    assert all(share(r["auroc"]) for r in result["detection"])
    rejected = [json.loads(line) for line in (folder / "data" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 1
    assert "rejected is missing" in rejected[0]["reason"]
    assert not (folder / ".partial").exists() or not list((folder / ".partial").iterdir())
    assert len(list(result_tables(result, "safety"))) == 4


def test_bert(finished: Finished) -> None:
    check_result(finished.folder, finished.result)
    check_report(finished.folder / "report.html")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_decoders(kind: str, tmp_path: Path) -> None:
    data = recipe_data(tmp_path / "run", write_model(tmp_path / "model", kind), write_pairs(tmp_path / "pairs"))
    folder, result = run_safer(check_recipe(data, kind))
    check_result(folder, result)
    check_report(folder / "report.html")


def test_workers_side_by_side_find_the_same(finished: Finished, tmp_path: Path) -> None:
    data = finished.data(tmp_path / "run", workers=2, denoise__rates=[])
    folder, result = run_safer(check_recipe(data, "two workers"))
    assert {k for k, v in result.items() if v != finished.result[k]} == {
        "recipe", "stages", "denoise", "denoise_summary", "detection", "recovery",
    }  # fmt: skip
    made = sorted(p.parent.relative_to(folder) for p in folder.rglob("manifest.json"))
    assert len(made) == 11
    for stage in made:
        one, other = (json.loads((root / stage / "manifest.json").read_text()) for root in (folder, finished.folder))
        assert one.get("outputs") == other.get("outputs"), stage
