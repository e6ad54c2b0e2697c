"""The Python of docs/diagnose.md does what the page says, on tiny models; its functions are the package's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_knowledge import NAMES, TAUGHT
from planted_risk import sentences, write_rows

import seamark.diagnose as room
from seamark.atlas import AtlasWriter
from seamark.features import Feature, FeatureSet, ScanConfig, scan
from seamark.model import load_model
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text import read_pairs
from tiny import tiny_folder
from tiny_run import write_pairs

PAGE = Path(__file__).parents[2] / "docs" / "diagnose.md"


def snippets(heading: str) -> list[str]:
    """The Python of a section; of an empty heading that before the first."""
    parts = re.split(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    text = dict(zip(["", *parts[1::2]], parts[::2], strict=True))[heading]
    return re.findall(r"^```python\n(.+?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the page takes as given."""
    root = tmp_path_factory.mktemp("docs")
    tiny_folder(root / "MODEL", "llama", "lm")
    model = load_model(root / "MODEL")
    suite = {name: SparseAutoencoder(SAEConfig(d_in=32, d_sae=96, k=12, hookpoint=f"layers.{i}"), seed=i).eval()
             for name, i in (("l5", 0), ("l11", 2))}  # fmt: skip
    for name, sae in suite.items():
        sae.save_pretrained(root / "runs" / name)
    pairs = write_pairs(root)
    for group, files in pairs.items():
        (root / f"{group}.jsonl").write_bytes(Path(files[0]).read_bytes())
    scan(model, suite, read_pairs(pairs), root / "runs" / "scan", config=ScanConfig(rewards=False))
    FeatureSet(features=(Feature(sae="l11", latent=1, sign=1),)).save(root / "runs" / "features.json")
    AtlasWriter.open(root / "runs" / "atlas.db", create=True).close()
    words = ["harbour", "bread", "flour", "yeast", "ships", "weather"]
    write_rows(root / "parallel.jsonl", [
        {"id": f"p{i}", "texts": {lang: f"{words[i % 6]} {words[i // 6]} {lang}" for lang in ("en", "hi", "zh")}}
        for i in range(30)])  # fmt: skip
    write_rows(root / "entities.jsonl", [{"entity": name, "known": name in TAUGHT} for name in NAMES])
    write_rows(root / "texts.jsonl", [
        {"text": said, "domain": label, "source": source, "lang": "en"}
        for k, source in enumerate("ab")
        for label, word, n in (("violence", "toxic bleach", 25), ("none", "brown bread", 30), ("other_harm", "x", 5))
        for said in sentences(n, 7 * k + len(label), word, length=6)])  # fmt: skip
    return root


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    monkeypatch.chdir(folder)

    def done(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(snippets("")[0], names)
        exec(code, names)
        return names

    return done


def test_what_is_opened(run: Callable[[str], dict[str, Any]]) -> None:
    names = run("")
    assert set(names["q"]) == {"l5", "l11"}
    assert len(names["pairs"]) > 0
    assert names["tokenizer"] is names["model"].tokenizer
    assert isinstance(names["hf_model"], torch.nn.Module)


def test_languages_in_python(run: Callable[[str], dict[str, Any]]) -> None:
    report = run(snippets("Languages")[0])["report"]
    assert isinstance(report, room.LanguagesReport)
    assert {one.language for one in report.languages} == {"hi", "zh"}
    assert report.config.threshold == 0.4
    assert all(s.q_from == "the scan" for s in report.saes)


def test_knowledge_in_python(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(snippets("Knowledge")[0])
    assert isinstance(names["report"], room.KnowledgeReport)
    assert (names["report"].known, names["report"].unknown) == (len(TAUGHT), len(NAMES) - len(TAUGHT))
    assert names["report"].no_frequency == ""
    assert names["texts"].items[0].text == f"Tell me about {NAMES[0]}"


def test_risk_and_a_guard_in_python(run: Callable[[str], dict[str, Any]]) -> None:
    loaded, made = snippets("Risk identification")
    names = run(made)
    assert names["report"].domains[0].domain == "violence"
    opened: dict[str, Any] = {}
    exec(loaded, opened)
    said = ["a text", "another"]
    assert opened["guard"].score(said) == pytest.approx(np.asarray(names["guard"].score(said)), abs=1e-6)


def test_what_the_page_imports_is_the_packages() -> None:
    """A function must not be hidden by the module of its name."""
    text = "\n".join(re.findall(r"^```python\n(.+?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL))
    named = {n for line in re.findall(r"from seamark\.diagnose import (.+)", text) for n in line.split(", ")}
    assert {"languages", "knowledge", "risk", "read_parallel", "read_entities"} <= named
    assert named <= set(room.__all__)
    assert all(callable(getattr(room, name)) for name in [*named, "change"])
