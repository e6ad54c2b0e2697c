"""`seamark explain`: records, contexts, promoted tokens, a language model behind a server, and what can go wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import seamark.explain.explaining as explaining
from seamark.cli import explain as command
from seamark.explain import read_explanations
from seamark.features import Feature, FeatureSet, Scan, read_contexts
from seamark.sae import SparseAutoencoder, sae_config
from tiny import tiny_folder
from tiny_run import call, the_error

WORDS = ["bleach", "bread", "ammonia", "yeast", "ships", "harbour", "flour", "water"]
TAILS = ["at home, please.", "in an hour; then wait.", "and walk with salt.", "for Dr. Smith!", "by the old map."]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["seamark.cli.main"].COMMANDS, "explain", command.explain)


def write_sae(folder: Path) -> str:
    sae = SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=0)
    with torch.no_grad():
        sae.b_enc -= torch.rand(64, generator=torch.Generator().manual_seed(9)) * 2.0
    sae.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny language model, an SAE, and two scans of some texts: one that kept tokens, one that did not."""
    root = tmp_path_factory.mktemp("explain")
    model, sae = tiny_folder(root / "model", "llama", "lm"), write_sae(root / "sae")
    rows = [{"id": f"t{i}", "text": f"Mix {WORDS[i % 8]} and {WORDS[(i * 3 + 1) % 8]} {TAILS[i % 5]} Number {i}."}
            for i in range(160)]  # fmt: skip
    texts = root / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = {"model": model, "sae": sae, "root": str(root)}
    for name in ("always", "never"):
        code, _, err = call("scan", "run", "--model", model, f"--sae=l2={sae}", "--texts", texts, "--out", root / name,
                            "--set", f"scan.keep_tokens={name}", "--json")  # fmt: skip
        assert code == 0, err
        found[name] = str(root / name)
    return found


def run(*words: object) -> dict[str, Any]:
    code, out, err = call("explain", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1, out
    return dict(json.loads(out))


def test_offline(place: dict[str, str], tmp_path: Path) -> None:
    result = run("--scan", place["always"], "--out", tmp_path, "--n", "12")
    assert result == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found, contexts = read_explanations(tmp_path / "explanations.jsonl"), read_contexts(tmp_path / "contexts.jsonl")
    assert list(found) == list(contexts)
    assert result["features"] == len(found) == 12
    assert result["explained"] + sum(result["failed"].values()) == 12
    assert result["explained"] == sum(e.text is not None for e in found.values()) > 0
    assert (result["method"], result["model"], result["cost"]) == ("lexical", None, None)
    assert any("No LLM was given" in note for note in result["notes"])
    assert any("not how well a language model would explain" in note for note in result["notes"])
    q = Scan.open(place["always"]).q("l2")
    assert all(q[latent] > 0 for _, latent in found)  # NaN is not
    assert all(e.method == "lexical" and e.promoted == () for e in found.values())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(before) == ["contexts.jsonl", "explained.json", "explanations.jsonl", "result.json"]
    manifest = json.loads(before["explained.json"])
    assert manifest["key"] == result["key"]
    assert manifest["settings"] == result["settings"]
    assert result["versions"]["seamark"] == manifest["versions"]["seamark"]
    assert [("l2", latent) for latent in manifest["features"]["l2"]] == list(found)
    assert manifest["settings"]["scan"] == Scan.open(place["always"]).manifest["key"]
    run("--scan", place["always"], "--out", tmp_path, "--n", "12")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_fewer_are_among_more(place: dict[str, str], tmp_path: Path) -> None:
    few, more = tmp_path / "few", tmp_path / "more"
    for out, n in ((few, 4), (more, 9)):
        run("--scan", place["always"], "--out", out, "--n", n)
    keys = [list(read_explanations(out / "explanations.jsonl")) for out in (few, more)]
    assert set(keys[0]) < set(keys[1])
    assert keys[1] == sorted(keys[1])
    run("--scan", place["always"], "--out", few, "--n", 4, "--seed", 1, "--overwrite")
    assert list(read_explanations(few / "explanations.jsonl")) != keys[0]


def test_named_latents_and_a_feature_set(place: dict[str, str], tmp_path: Path) -> None:
    run("--scan", place["always"], "--out", tmp_path / "a", "--latents", "7", "3")
    assert list(read_explanations(tmp_path / "a" / "explanations.jsonl")) == [("l2", 7), ("l2", 3)]
    features = FeatureSet(features=tuple(Feature(sae="l2", latent=i, sign=1) for i in (3, 7)))
    features.save(tmp_path / "features.json")
    run("--scan", place["always"], "--out", tmp_path / "b", "--features", tmp_path / "features.json")
    one, two = (read_explanations(tmp_path / n / "explanations.jsonl") for n in "ab")
    assert one == two


def test_for_people(place: dict[str, str], tmp_path: Path) -> None:
    code, out, err = call("explain", "--scan", place["always"], "--out", tmp_path, "--n", "8", "--language", "zh")
    assert code == 0, err
    assert "Explanations (lexical)" in out
    assert "No LLM was given (--llm), so the lexical explainer was used." in " ".join(out.split())
    assert "Its explanations are in English." in " ".join(out.split())
    assert str(tmp_path / "result.json") in out


def test_promoted_tokens_and_texts_read_again(place: dict[str, str], tmp_path: Path) -> None:
    suite = ["--model", place["model"], "--suite", f"l2={place['sae']}"]
    plain, with_model = tmp_path / "plain", tmp_path / "with"
    run("--scan", place["always"], "--out", plain, "--n", "5")
    for scan in ("always", "never"):
        result = run("--scan", place[scan], "--out", with_model, "--n", "5", *suite, "--overwrite")
        found = read_explanations(with_model / "explanations.jsonl")
        assert all(len(e.promoted) == len(e.suppressed) == 10 for e in found.values())
        bare = {k: e.model_copy(update={"promoted": (), "suppressed": ()}) for k, e in found.items()}
        assert bare == read_explanations(plain / "explanations.jsonl")
        assert not any("unembedding" in note for note in result["notes"])
    code, out, err = call("explain", "--scan", place["never"], "--out", tmp_path / "bare", "--n", "5")
    assert "kept no latents of single tokens" in the_error(code, out, err)


def test_a_language_model(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")

    def make(seen: Any) -> dict[str, Any]:
        return {"explanation": "Things to bake with.", "tags": ["terror/weapons"], "safety_rating": 4,
                "rating_reason": "Sharp ones.", "language": "en"}  # fmt: skip

    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nprices:\n- {model: baker, input: 1000, output: 2000}\n", encoding="utf-8")
    out = tmp_path / "out"
    words = ["--scan", place["always"], "--out", out, "--n", "6", "--llm", "baker", "--prices", prices]
    behave: Callable[[Any], str] = lambda seen: "500" if seen.times == 0 and seen.n % 3 == 0 else "ok"  # noqa: E731
    with Server(behave, make=make) as server:
        words += ["--base-url", server.url]
        dry = run(*words, "--dry-run")
        assert (dry["to_ask"], dry["cached"], dry["currency"]) == (6, 0, "EUR")
        assert dry["worst_cost"] > dry["cost"] > 0
        assert server.stats.requests == 0
        assert not (out / "result.json").exists()
        result = run(*words)
        asked = sum(server.stats.made.values())
        assert asked == 6
        assert (result["explained"], result["failed"], result["ratings"]["4"]) == (6, {}, 6)
        assert result["tags"] == {"terror/weapons": 6}
        assert result["cost"]["currency"] == "EUR"
        assert result["cost"]["spent"] == pytest.approx(server.stats.money)
        again = run(*words)
        assert sum(server.stats.made.values()) == asked  # nothing is paid twice
        assert again["explained"] == 6
        assert again["cost"]["rows"][0]["cached"] == 6
        assert run(*words, "--dry-run")["to_ask"] == 0
    found = read_explanations(out / "explanations.jsonl")
    assert all((e.method, e.model, e.prompt_version) == ("llm", "baker", "explain-1") for e in found.values())
    assert all(e.cost and e.cost > 0 for e in found.values())
    for file in out.iterdir():
        assert b"sk-test" not in file.read_bytes()


def test_what_fails_is_counted_by_reason(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nprices:\n- {model: baker, input: 1000, output: 2000}\n", encoding="utf-8")
    words = ["--scan", place["always"], "--out", tmp_path / "out", "--n", "5", "--llm", "baker", "--prices", prices]
    with Server() as server:  # its answers have another form
        told = the_error(*call("explain", *words, "--base-url", server.url))
        assert "baker: none of 5 requests brought an explanation (" in told
        assert "schema" in told
        none = [*words[:2], "--out", tmp_path / "none", *words[4:], "--base-url", server.url, "--budget", "0.0001"]
        assert "5 requests brought an explanation (budget reached)" in the_error(*call("explain", *none))
        assert sum(server.stats.made.values()) == 10  # each twice, and with no budget none
    for folder in ("out", "none"):  # nothing but what was paid
        assert {p.name for p in (tmp_path / folder).iterdir()} <= {"answers.sqlite", *SIDE_FILES}
    with Server(make=baking(2)) as server:
        result = run(*words, "--base-url", server.url, "--cache", tmp_path / "other.sqlite")
    assert (result["explained"], sum(result["failed"].values())) == (2, 3)
    assert all("schema" in reason for reason in result["failed"])
    found = read_explanations(tmp_path / "out" / "explanations.jsonl")
    assert all(e.rating is None and e.tags == () for e in found.values() if e.failed)


SIDE_FILES = {"answers.sqlite-wal", "answers.sqlite-shm"}


def baking(good: int) -> Callable[[Any], dict[str, Any]]:
    """A model that explains the first `good` features it is asked about; what it says of others has another form."""
    users: dict[str, int] = {}

    def make(seen: Any) -> dict[str, Any]:
        if users.setdefault(seen.user, len(users)) >= good:
            return {"word": "no"}
        return {"explanation": "Things to bake with.", "tags": [], "safety_rating": 1, "rating_reason": "Harmless.",
                "language": "en"}  # fmt: skip

    return make


def test_good_explanations_are_never_lost_to_failed_ones(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    out = tmp_path / "out"
    words = ["--scan", place["always"], "--out", out, "--llm", "baker"]
    for i, (n, good, more) in enumerate([(5, 5, []), (5, 2, []), (5, 0, []), (6, 1, []), (5, 0, ["--overwrite"])]):
        before = read_explanations(out / "explanations.jsonl") if i else {}
        with Server(make=baking(good)) as server:  # and a new cache, so that all is asked again
            result = run(*words, "--base-url", server.url, "--cache", tmp_path / f"{i}.sqlite", "--n", n, *more)
        found = read_explanations(out / "explanations.jsonl")
        assert result["explained"] >= 5
        assert sum(e.failed for e in found.values()) == n - result["explained"]
        assert len(result["kept"]) == (result["explained"] - good if i else 0)
        assert any("of an earlier run" in note for note in result["notes"]) == (i > 0)
        for sae, latent in result["kept"]:
            assert found[sae, latent] == before[sae, latent]


def test_results_of_another_kind_are_not_written_over(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    out, mine = tmp_path / "out", tmp_path / "mine.yaml"
    mine.write_text("domains: {kitchen: {description: Cooking.}}", encoding="utf-8")
    run("--scan", place["always"], "--out", out, "--n", 5)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with Server(make=baking(9)) as server:
        llm = ["--llm", "baker", "--base-url", server.url, "--cache", tmp_path / "answers.sqlite"]
        for words, why in [
            (["--n", 4], "1 features that are not asked for now"),
            (["--n", 5, "--seed", 1], "other contexts"),
            (["--n", 5, "--taxonomy", mine], "other taxonomy"),
            (["--n", 5, "--model", place["model"], "--suite", f"l2={place['sae']}"], "other promoted"),
            (["--n", 5, *llm], "other method, model, prompt_version"),
        ]:
            told = the_error(*call(*words_of(place, out, *words)))
            assert why in told
            assert "--overwrite" in told
            assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert server.stats.requests == 0  # it is refused before anything is paid
        told = the_error(*call("explain", "--scan", place["never"], "--out", out, "--n", 5, "--model", place["model"],
                               "--suite", f"l2={place['sae']}"))  # fmt: skip
        assert "other scan, promoted" in told
        result = run("--scan", place["always"], "--out", out, "--n", 5, *llm, "--overwrite")
        assert (result["method"], result["kept"]) == ("llm", [])
        assert run("--scan", place["always"], "--out", out, "--n", 7, *llm)["features"] == 7  # more are no others
        with Server(make=baking(0)) as broken:  # what is to be given up is, but only for something
            before = {p.name: p.read_bytes() for p in out.iterdir()}
            other = ["--llm", "other", "--base-url", broken.url, "--cache", tmp_path / "other.sqlite", "--overwrite"]
            assert "none of 5 requests" in the_error(*call(*words_of(place, out, "--n", 5, *other)))
            assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "result.json").write_text("{}")
    told = the_error(*call(*words_of(place, strange, "--n", 5)))
    assert "the folder holds result.json, and no explained.json says what it was made from" in told


def test_blocks_change_nothing(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = ["--model", place["model"], "--suite", f"l2={place['sae']}"]
    asked = []
    real = explaining.explain_features

    def counting(contexts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(contexts))
        return real(contexts, *args, **kwargs)

    monkeypatch.setattr(explaining, "explain_features", counting)
    for size in (256, 3):
        monkeypatch.setattr(command, "BLOCK", size)
        run("--scan", place["always"], "--out", tmp_path / str(size), "--n", "7", *suite)
    assert asked == [7, 3, 3, 1]
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("256", "3"))
    assert one == two


def words_of(place: dict[str, str], out: Path, *more: object) -> list[object]:
    return ["explain", "--scan", place["always"], "--out", out, *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--latents", "64"], "64"),
        (["--sae", "other"], "no autoencoder 'other'"),
        (["--n", "0"], "0 features"),
        (["--group", "none"], "none"),
        (["--language", "english"], "no language code"),
        (["--taxonomy", "missing.yaml"], "missing.yaml: cannot be read"),
        (["--features", "missing.json"], "missing.json"),
        (["--features", "f.json", "--latents", "1"], "--features: a feature set names SAEs"),
        (["--suite", "l2=x"], "--suite: SAEs are given without their model"),
        (["--model", "MODEL"], "--suite: no SAE is given"),
        (["--model", "MODEL", "--suite", "other=SAE"], "the scan's SAE 'l2' is not among those given"),
        (["--base-url", "http://localhost:1/v1"], "--llm: no language model is named"),
        (["--dry-run"], "--llm: no language model is named"),
        (["--llm", "m", "--base-url", "nonsense"], "--base-url"),
        (["--llm", "m", "--base-url", "http://localhost:1/v1", "--concurrency", "0"], "--concurrency"),
        (["--llm", "m", "--base-url", "http://localhost:1/v1", "--api-key-env", "sk-live-1"], "--api-key-env"),
    ],
)
def test_what_a_user_can_get_wrong(place: dict[str, str], tmp_path: Path, more: list[str], message: str) -> None:
    filled = [word.replace("MODEL", place["model"]).replace("SAE", place["sae"]) for word in more]
    told = the_error(*call(*words_of(place, tmp_path / "out", *filled)))
    assert message in told
    assert "sk-live" not in told
    assert not (tmp_path / "out" / "explanations.jsonl").exists()


def test_another_dimension(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    file, out = tmp_path / "verbosity.yaml", tmp_path / "out"
    file.write_text("{name: verbosity, group: texts, question: how strongly it is about long answers}\n", "utf-8")
    words = ["--scan", place["always"], "--out", out, "--n", "3", "--dimension", file]
    code, printed, err = call("explain", *words)
    assert "none is named" in the_error(code, printed, err)

    def make(seen: Any) -> dict[str, Any]:
        return {"explanation": "Things to bake with.", "tags": [], "rating": 5, "rating_reason": "Long ones.",
                "language": "en"}  # fmt: skip

    with Server(lambda seen: "ok", make=make) as server:
        result = run(*words, "--llm", "baker", "--base-url", server.url)
        assert (result["dimension"], result["explained"], result["ratings"]["5"]) == ("verbosity", 3, 3)
        assert result["prompt_version"].startswith("explain-dimension-1:verbosity:")
        code, printed, err = call("explain", *words[:-2], "--llm", "baker", "--base-url", server.url)
        assert "other prompt_version" in the_error(code, printed, err)
    file.write_text("{name: verbosity, group: texts}\n", "utf-8")
    code, printed, err = call("explain", *words, "--llm", "baker")
    assert "key question" in the_error(code, printed, err)
