"""`seamark simulate`: what it writes and prints, what it asks a server, and what can go wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planted_contexts import at_random, on_bigram, on_word, plant
from seamark.cli import simulate as command
from seamark.explain.folder import Manifest, Settings, drafts, publish
from seamark.explain.lexical import explain_lexical
from seamark.explain.records import (
    Explanation,
    Simulation,
    read_explanations,
    read_simulations,
    write_explanations,
)
from seamark.explain.taxonomy import Taxonomy
from seamark.features.context_choice import ContextConfig
from seamark.features.context_sets import ContextHalf, FeatureContexts, write_contexts
from seamark.stats import Estimate
from tiny import tiny_folder
from tiny_run import call, the_error

sys.path.insert(0, str(Path(__file__).parents[1] / "explain"))
from llm_server import Server


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["seamark.cli.main"].COMMANDS, "simulate", command.simulate)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `explain` leaves behind: four features that can be simulated, one that fires too rarely."""
    folder = tmp_path_factory.mktemp("explained")
    features = [
        plant(on_word("vote"), ["vote"], latent=1),
        plant(on_bigram("election", "day"), ["election day", "day"], latent=2),
        plant(lambda words: [6.0 * (w in ("vote", "bread", "a")) for w in words], ["vote"], latent=3),
        plant(lambda words: [6.0 * (w == "vote" and len(words) % 3 > 0) for w in words], ["vote"], latent=4),
        plant(at_random(0), latent=5),
        FeatureContexts("sae", 6, None, "fires too rarely", ContextHalf(), ContextHalf()),
    ]
    write_contexts({(f.sae_id, f.latent): f for f in features}, folder / "contexts.jsonl")
    write_explanations(folder / "explanations.jsonl", [explain_lexical(f, Taxonomy.default()) for f in features])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("model") / "bert", "bert", "base")


def run(*words: object) -> dict[str, Any]:
    code, out, err = call("simulate", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return dict(json.loads(out))


def test_offline(explained: Path, tmp_path: Path) -> None:
    result = run("--explained", explained, "--out", tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found = read_simulations(tmp_path / "simulations.jsonl")
    assert [s.latent for s in found] == [1, 2, 3, 4, 5, 6]
    assert {s.level for s in found} == {"segment"}
    one = result["levels"]["segment"]
    scores = sorted(s.correlation.value for s in found if s.correlation.value is not None)
    assert one["features"] == 6
    assert one["scored"] == len(scores) == sum(one["histogram"].values())
    assert one["share_good"] == sum(v >= 0.2 for v in scores) / len(scores)
    assert one["max"] == scores[-1] > 0.9
    assert sum(one["not_available"].values()) == 6 - len(scores)
    assert one["not_available"]["fires too rarely"] == 1
    assert any("not how well a language model would explain" in note for note in result["notes"])
    assert (result["method"], result["model"], result["cost"]) == ("lexical", None, None)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(before) == ["result.json", "simulations.jsonl"]
    run("--explained", explained, "--out", tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_every_score_is_in_one_bin() -> None:
    """Tenths are no binary numbers: 0.3 is not 0.2 + 0.1."""
    scores = [i / 100 for i in range(-100, 101)] + [0.7 + 0.1, 0.1 + 0.2, -0.8 + 0.1]
    found = command.summary([
        Simulation(sae="s", latent=i, level="segment", method="lexical", correlation=Estimate(value=score, n=9),
                   accuracy=Estimate.not_available("not asked")) for i, score in enumerate(scores)
    ])  # fmt: skip
    bins = found["histogram"]
    assert sum(bins.values()) == found["scored"] == len(scores)
    assert (bins["-1.0"], bins["-0.2"], bins["0.2"], bins["0.3"]) == (10, 10, 10, 11)
    assert bins["0.9"] == 11  # 1 is in the last one


def test_the_table(explained: Path, tmp_path: Path) -> None:
    code, out, err = call("simulate", "--explained", explained, "--out", tmp_path, "--level", "token")
    assert code == 0, err
    text = " ".join(out.split())
    for part in ("lexical", "token scores: median", "share of 0.2 or more", "not available: fires", "not how well"):
        assert part in text


def test_compare_offline(explained: Path, tmp_path: Path, model: str) -> None:
    result = run("--explained", explained, "--out", tmp_path, "--compare", "--tokenizer", model, "--n-texts", "20")
    found = result["comparison"]
    assert list(result["levels"]) == ["segment", "token"]
    assert len(read_simulations(tmp_path / "simulations.jsonl")) == 12
    assert found["measured"] is False
    assert found["tokenizer"] == model
    assert 0 < found["token_saving"]["value"] < 1
    assert found["segment"]["queries"] == found["token"]["queries"] > 0
    assert [f["n_texts"] for f in found["features"]] == [20, 20, 20, 20, 0, 0]
    assert found["spearman"]["value"] is not None
    assert found["batching"]["batch"] == 8
    assert result["llm"] is None  # until someone runs one
    assert result["llm_command"].startswith("seamark simulate --explained ")
    assert "--n-texts 20 --batch 1 --llm NAME" in result["llm_command"]
    code, out, _ = call("simulate", "--explained", explained, "--out", tmp_path, "--compare", "--tokenizer", model)
    assert code == 0
    assert "tokens saved by segments" in " ".join(out.split())


def test_the_scan_names_the_tokenizer(explained: Path, tmp_path: Path, model: str) -> None:
    for name in ("contexts.jsonl", "explanations.jsonl"):
        (tmp_path / name).write_bytes((explained / name).read_bytes())
    assert "--tokenizer" in the_error(
        *call("simulate", "--explained", tmp_path, "--out", tmp_path / "out", "--compare")
    )
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "scan.json").write_text(json.dumps({"model_name": model}))
    manifest = whole(tmp_path)
    result = run("--explained", tmp_path, "--out", tmp_path / "out", "--compare")
    assert result["comparison"]["tokenizer"] == model
    assert result["explained_key"] == manifest.key


def whole(folder: Path, name: str = "lexical") -> Manifest:
    """Publish a folder's contexts and explanations as `explain` does."""
    settings = Settings.of(f"key of {name}", ContextConfig(), None, "en", Taxonomy.default(), promoted=False)
    explanations = read_explanations(folder / "explanations.jsonl")
    features = {"sae": [latent for _, latent in explanations]}
    with drafts(folder) as draft:
        (draft / "contexts.jsonl").write_bytes((folder / "contexts.jsonl").read_bytes())
        return publish(draft, folder, explanations.values(), settings, features, folder / "scan")


def test_files_that_do_not_belong_together(explained: Path, tmp_path: Path) -> None:
    names = ("contexts.jsonl", "explanations.jsonl")
    for name in names:
        (tmp_path / name).write_bytes((explained / name).read_bytes())
    words = ("simulate", "--explained", tmp_path, "--out", tmp_path / "out")
    assert any("No explained.json" in note for note in run(*words[1:])["notes"])
    whole(tmp_path)
    result = run(*words[1:])
    assert not any("No explained.json" in note for note in result["notes"])
    for name in names:
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"".join(before.splitlines(keepends=True)[1:]))  # as of fewer features
        told = the_error(*call(*words))
        assert f"{name} and explained.json do not belong together" in told
        assert "Run explain again" in told
        (tmp_path / name).write_bytes(before)
    run(*words[1:])
    (tmp_path / "explained.json").write_text("{}")
    assert "explained.json: not the manifest" in the_error(*call(*words))


def test_results_do_not_go_where_the_explanations_are(explained: Path) -> None:
    told = the_error(*call("simulate", "--explained", explained, "--out", explained / ".." / explained.name))
    assert "--out: the explanations' own result.json lies there" in told
    assert not (explained / "result.json").exists()


@pytest.fixture
def server() -> Iterator[Server]:
    def make(seen: Any) -> dict[str, Any]:
        units = len(seen.user.split("\n")) - 1
        return {"values": [int(i % 3 == 0) for i in range(units)]}

    with Server(make=make) as found:
        yield found


def test_with_a_language_model(explained: Path, tmp_path: Path, server: Server) -> None:
    words = (
        "--explained",
        explained,
        "--out",
        tmp_path,
        "--llm",
        "tester",
        "--base-url",
        server.url,
        "--n-texts",
        "10",
    )
    dry = run(*words, "--compare", "--dry-run")
    assert server.stats.requests == 0
    assert not (tmp_path / "result.json").exists()
    asked = dry["levels"]["segment"]["to_ask"]
    assert dry["levels"]["token"]["to_ask"] == asked
    assert dry["total"]["to_ask"] == 2 * asked  # one sum: the levels share one budget
    result = run(*words, "--compare")
    assert server.stats.requests == 2 * asked
    found = result["comparison"]
    assert result["llm"] == found
    assert found["measured"]
    assert (found["method"], found["model"]) == ("llm", "tester")
    assert found["segment"]["queries"] == 40 > asked  # features of equal explanations share calls
    assert result["cost"]["rows"][0]["stage"] == "simulate"
    assert any("of these explanations are lexical" in note for note in result["notes"])
    assert found["note"] in result["notes"]
    run(*words, "--level", "token")
    assert server.stats.requests == 2 * asked  # all of it was in the cache


def test_a_language_model_needs_no_tokenizer(explained: Path, tmp_path: Path, server: Server) -> None:
    """A scan names a model's folder by its last part, which says nothing about where it lies; others may be gone."""
    for name in ("contexts.jsonl", "explanations.jsonl"):
        (tmp_path / name).write_bytes((explained / name).read_bytes())
    (tmp_path / "scan").mkdir()
    whole(tmp_path)
    words = ("--explained", tmp_path, "--out", tmp_path / "out", "--compare", "--n-texts", "10")
    (tmp_path / "scan" / "scan.json").write_text(json.dumps({"model_name": "gpt2"}))
    told = the_error(*call("simulate", *words))
    assert "--tokenizer: nothing says whose tokenizer counts" in told
    (tmp_path / "scan" / "scan.json").write_text(json.dumps({"model_name": "./gone"}))
    told = the_error(*call("simulate", *words))
    assert "--tokenizer: the tokenizer of the scanned model './gone' cannot be loaded" in told
    found = run(*words, "--llm", "tester", "--base-url", server.url)["comparison"]
    assert found["measured"]
    assert (found["tokenizer"], found["batching"]) == (None, None)
    assert "./none" in the_error(
        *call("simulate", *words, "--llm", "m", "--base-url", server.url, "--tokenizer", "./none")
    )


def test_bad_input(explained: Path, tmp_path: Path, model: str) -> None:
    base = ("simulate", "--explained", explained, "--out", tmp_path)
    assert "contexts.jsonl" in the_error(*call("simulate", "--explained", tmp_path / "none", "--out", tmp_path))
    assert "--n-texts" in the_error(*call(*base, "--n-texts", "8"))
    assert "--batch" in the_error(*call(*base, "--batch", "0"))
    assert "--llm" in the_error(*call(*base, "--dry-run"))
    assert "none" in the_error(*call(*base, "--compare", "--tokenizer", tmp_path / "none"))
    (tmp_path / "contexts.jsonl").write_bytes((explained / "contexts.jsonl").read_bytes())
    (tmp_path / "explanations.jsonl").write_text("{}\n")
    assert "explanations.jsonl, line 1" in the_error(
        *call("simulate", "--explained", tmp_path, "--out", tmp_path / "out")
    )


def test_explanations_of_a_language_model_need_one(explained: Path, tmp_path: Path) -> None:
    spoken = [Explanation(sae="sae", latent=i, text="Votes.", rating_reason="none", language="en", method="llm")
              for i in (1, 2)]  # fmt: skip
    (tmp_path / "contexts.jsonl").write_bytes((explained / "contexts.jsonl").read_bytes())
    write_explanations(tmp_path / "explanations.jsonl", spoken)
    result = run("--explained", tmp_path, "--out", tmp_path / "out")
    one = result["levels"]["segment"]
    assert one["scored"] == 0
    assert one["median"] is None
    assert one["not_available"]["the explanation is a language model's, and only such can simulate it"] == 2
