"""Guards: their scores are those of `risk`, files travel and are refused when they do not fit, and bad texts too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_risk import sentences
from safetensors.torch import save_file

from seamark.diagnose import guard as module
from seamark.diagnose.guard import Guard, GuardAbout
from seamark.diagnose.guard_making import export_guard, gates
from seamark.diagnose.risk import RiskConfig, final_fit, risk, risk_inputs, risk_scan
from seamark.diagnose.risk_texts import LabelledText, LabelledTexts
from seamark.errors import ConfigError, DataError, FormatError, ModelError
from seamark.features import Scan
from seamark.sae import SAEConfig, SparseAutoencoder
from tiny import tiny_hooked

CONFIG = RiskConfig(draws=50, learning=False, folds=3, detectors=("single", "sparse_max", "raw_probe", "words"))


def make_sae(activation: str = "topk", hookpoint: str = "layers.1", seed: int = 0, d_in: int = 32) -> SparseAutoencoder:
    k = 6 if activation.startswith("topk") else None
    config = SAEConfig(d_in=d_in, d_sae=96, k=k, activation=activation, hookpoint=hookpoint)  # type: ignore[arg-type]
    return SparseAutoencoder(config, seed=seed).eval()


def make_texts() -> LabelledTexts:
    items = []
    for source in ("a", "b"):
        for label, word, n in (("storm", "toxic bleach", 45), ("none", "brown bread", 60)):
            said = sentences(n, len(items), word, length=6)
            items += [LabelledText(f"{source}{label}{i}", t, frozenset({label}), source, "")
                      for i, t in enumerate(said)]  # fmt: skip
    return LabelledTexts.of(items)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_hooked("llama", "lm")


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, LabelledTexts, SparseAutoencoder]:
    texts, sae = make_texts(), make_sae()
    return risk_scan(model, {"one": sae}, texts, tmp_path_factory.mktemp("risk") / "scan"), texts, sae


@pytest.fixture(scope="module")
def guards(model: Any, made: Any) -> dict[str, Guard]:
    scan, texts, sae = made
    x = risk_inputs(scan, texts)
    found = {}
    for name, few, detector in (("exact", False, None), ("mean", False, "sparse_mean"), ("few", True, None)):
        found[name] = export_guard(x, "storm", model, sae, sae_id="one", few=few, detector=detector, config=CONFIG,
                                   rounds=3)  # fmt: skip
    return found


def test_risk_finds_the_word(made: Any) -> None:
    scan, texts, _ = made
    report = risk(scan, texts, ["storm"], config=CONFIG)
    within = report.domains[0].splits[0]
    assert within.n_texts == 210
    found = {d.detector: d for d in within.detectors}
    assert found["sparse_max"].measures.auroc.value > 0.7, "latents of random weights tell something"
    assert found["words"].measures.auroc.value > 0.99
    assert found["raw_probe"].auroc_minus_raw.value is None
    difference = found["sparse_max"].measures.auroc.value - found["raw_probe"].measures.auroc.value
    assert found["sparse_max"].auroc_minus_raw.value == pytest.approx(difference)


@pytest.mark.parametrize("name", ["exact", "mean"])
def test_an_exact_guard_gives_the_scores_of_risk(made: Any, guards: dict[str, Guard], name: str) -> None:
    scan, texts, _ = made
    x = risk_inputs(scan, texts)
    fitted, _ = final_fit(x, "storm", "sparse_max" if name == "exact" else "sparse_mean", CONFIG)
    rows = np.arange(len(texts))
    mine = guards[name].score([t.text for t in texts])
    assert mine == pytest.approx(fitted.probability(rows), abs=1e-4)
    assert np.ptp(mine) > 0.3, "the guard tells texts apart"
    agreement = guards[name].about.agreement
    assert agreement.largest_difference < 1e-4
    assert agreement.same_decision.value == 1.0
    assert guards[name].about.positives == 90


def test_one_text_or_many_and_any_batch(guards: dict[str, Guard]) -> None:
    texts = [t.text for t in make_texts()][:7]
    for guard in guards.values():
        together = guard.score(texts)
        assert guard(texts[3]) == pytest.approx(together[3:4], abs=1e-5)
        assert guard.score(texts, batch_tokens=1) == pytest.approx(together, abs=1e-5)
        assert (guard.flags(texts) == (together >= guard.about.threshold)).all()
    assert guards["exact"].score([]).shape == (0,)


@pytest.mark.parametrize("activation", ["topk", "topk_relu", "relu"])
def test_a_guard_by_the_formula(model: Any, guards: dict[str, Guard], activation: str) -> None:
    sae = make_sae(activation)
    guard = guards["exact"]
    about = GuardAbout(**(dict(guard.about) | {"sae_config": sae.config}))
    text = "toxic bleach in the harbour"
    rendered = guard.render(text)[0]
    pooled = Guard(about, guard.weights, sae, model).pooled([rendered])[0]
    with torch.no_grad():
        ids = torch.as_tensor(rendered.input_ids).long()[None]
        h = model.hf(input_ids=ids, output_hidden_states=True).hidden_states[2][0].double()
    x = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + sae.config.eps)
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    if activation != "relu":
        cut = pre.topk(6, dim=1).values[:, -1:]
        pre = torch.where(pre >= cut, pre, 0.0)
    z = pre.relu()[torch.as_tensor(~rendered.special)].amax(0).detach().numpy()
    assert pooled == pytest.approx(z[guard.weights.latents], abs=1e-4)
    assert pooled.max() > 0


def test_a_guard_of_few_latents(guards: dict[str, Guard], made: Any) -> None:
    guard = guards["few"]
    assert guard.about.kind == "few"
    assert guard.about.detector == "sparse_few"
    assert 0 < len(guard.weights.latents) <= 32
    agreement = guard.about.agreement
    assert 0 < agreement.largest_difference < 1
    assert agreement.pearson.value > 0.5
    assert agreement.pearson.low < agreement.pearson.value


def test_gates_by_hand() -> None:
    pre = np.asarray([[3.0, 1], [2, 1], [1, 1], [-1, 1]], np.float32)
    fires = np.asarray([[True, False], [True, True], [False, False], [False, False]])
    assert gates(pre, fires)[0] == pytest.approx(1.5)
    assert gates(pre, fires)[1] > 1, "equal values cannot be parted: better none than all"


def test_latency_is_measured(guards: dict[str, Guard]) -> None:
    latency = guards["exact"].about.latency
    assert latency.rounds == 3
    assert latency.texts == 53
    assert min(latency.guard, latency.forward, latency.encoder_product, latency.rendering) > 0
    assert latency.ratio.low <= latency.ratio.value <= latency.ratio.high


# ---- files


@pytest.mark.parametrize("name", ["exact", "few"])
def test_round_trip(model: Any, guards: dict[str, Guard], name: str, tmp_path: Path) -> None:
    guard, texts = guards[name], [t.text for t in make_texts()][::20]
    guard.save(tmp_path / "g")
    for path in (tmp_path / "g", tmp_path / "g" / "guard.json"):
        again = Guard.load(path, model)
        assert (again.score(texts) == guard.score(texts)).all()
        assert again.about == guard.about
    assert (tmp_path / "g" / "sae").exists() == (name == "exact")
    assert str(tmp_path) not in (tmp_path / "g" / "guard.json").read_text()


def test_other_models_and_damaged_files(model: Any, guards: dict[str, Guard], tmp_path: Path) -> None:
    guards["exact"].save(tmp_path)
    with pytest.raises(ConfigError, match="another model"):
        Guard.load(tmp_path, tiny_hooked("llama", "lm", seed=5))
    make_sae(seed=9).save_pretrained(tmp_path / "sae")
    with pytest.raises(FormatError, match="another autoencoder"):
        Guard.load(tmp_path, model)
    guards["few"].save(tmp_path / "few")
    about = json.loads((tmp_path / "few" / "guard.json").read_text())
    nan = float("nan")  # it compares as below every threshold: the guard would flag nothing
    for change in ({"threshold": 2}, {"slope": "steep"}, {"format_version": 2}, {"extra": 1}, {"bias": nan},
                   {"intercept": nan}, {"threshold": nan}):  # fmt: skip
        (tmp_path / "few" / "guard.json").write_text(json.dumps(about | change))
        with pytest.raises(FormatError, match="not a guard of this version"):
            Guard.load(tmp_path / "few", model)
    (tmp_path / "few" / "guard.json").write_text(json.dumps(about | {"kind": "exact"}))
    with pytest.raises(FormatError):
        Guard.load(tmp_path / "few", model)
    (tmp_path / "few" / "guard.json").write_text(json.dumps(about))
    (tmp_path / "few" / "guard.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FormatError):
        Guard.load(tmp_path / "few", model)
    with pytest.raises(FormatError, match="no guard here"):
        Guard.load(tmp_path / "nowhere", model)


def test_arrays_that_do_not_fit(model: Any, guards: dict[str, Guard], tmp_path: Path) -> None:
    from seamark.features.arrays import load_arrays, save_arrays

    guards["few"].save(tmp_path)
    arrays = load_arrays(tmp_path / "guard.safetensors")
    latents, weights, W_enc = arrays["latents"], arrays["weights"], arrays["W_enc"]
    wrong = [
        ("weights", weights[:-1]), ("latents", latents + 90), ("gate", arrays["gate"] * np.float32(np.nan)),
        ("W_enc", W_enc[:5]), ("latents", np.asarray(3)), ("latents", latents[None]), ("latents", latents * 0),
        ("latents", latents.astype(np.float64)), ("latents", latents.astype(np.int32)), ("weights", weights[:, None]),
        ("weights", weights.astype(np.float32)), ("W_enc", W_enc.astype(np.float64)), ("b_dec", np.float32(0)),
        ("gate", arrays["gate"].astype(np.int64)), ("latents", latents[:0]),
    ]  # fmt: skip
    for name, array in wrong:
        save_arrays(tmp_path / "guard.safetensors", arrays | {name: np.asarray(array)})
        with pytest.raises(FormatError, match="do not fit"):
            Guard.load(tmp_path, model)
    save_arrays(tmp_path / "guard.safetensors", {name: a for name, a in arrays.items() if name != "gate"})
    with pytest.raises(FormatError, match="no gate in it"):
        Guard.load(tmp_path, model)
    half = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_file(half | {"gate": half["gate"].bfloat16()}, tmp_path / "guard.safetensors")
    with pytest.raises(FormatError, match="a type that guards do not use"):
        Guard.load(tmp_path, model)


def test_nothing_but_the_folder_is_opened(
    model: Any, guards: dict[str, Guard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an autoencoder that is missing nor, where a model is given, the one that guard.json names."""
    asked: list[Any] = []
    monkeypatch.setattr(module, "load_model", lambda name: asked.append(name) or model)
    guards["exact"].save(tmp_path)
    Guard.load(tmp_path, model)
    assert asked == []
    Guard.load(tmp_path)
    assert asked == [guards["exact"].about.model]
    (tmp_path / "sae").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(SparseAutoencoder, "from_pretrained", lambda *_: pytest.fail("it is looked for elsewhere"))
    with pytest.raises(FormatError, match="no autoencoder in it"):
        Guard.load(tmp_path, model)


def test_an_autoencoder_that_guard_json_tells_wrong(model: Any, guards: dict[str, Guard], tmp_path: Path) -> None:
    for name, change, kind, message in (("exact", {"d_sae": 97}, FormatError, "another autoencoder"),
                                        ("exact", {"hookpoint": "layers.0"}, FormatError, "another autoencoder"),
                                        ("few", {"hookpoint": "layers.9"}, ModelError, "blocks")):  # fmt: skip
        guards[name].save(tmp_path)
        about = json.loads((tmp_path / "guard.json").read_text())
        (tmp_path / "guard.json").write_text(json.dumps(about | {"sae_config": about["sae_config"] | change}))
        with pytest.raises(kind, match=message):
            Guard.load(tmp_path, model)
    for change in ({"eps": float("inf")}, {"eps": float("nan")}, {"eps": 0}, {"eps": 1e30},  # each score: the bias
                   {"d_sae": 10**15}, {"d_in": 10**15}):  # fmt: skip
        for name in ("few", "exact"):
            guards[name].save(tmp_path)
            about = json.loads((tmp_path / "guard.json").read_text())
            (tmp_path / "guard.json").write_text(json.dumps(about | {"sae_config": about["sae_config"] | change}))
            with pytest.raises(FormatError, match=f"not a guard of this version .sae_config.{next(iter(change))}"):
                Guard.load(tmp_path, model)
    guards["few"].save(tmp_path)
    with pytest.raises(ConfigError, match="another width"):
        Guard.load(tmp_path, tiny_hooked("llama", "lm", hidden_size=64), check_model=False)


# ---- bad input


def test_texts_that_no_guard_reads(guards: dict[str, Guard]) -> None:
    guard = guards["few"]
    for empty in ("", "  \n"):
        with pytest.raises(DataError, match="empty"):
            guard.score(["a text", empty])
    with pytest.raises(DataError, match=r"\d{2,3},\d{3} tokens; the guard reads 256") as caught:
        guard.score(["a text", "a " * 99_990 + "bleach"])
    assert caught.value.where == "text 2"
    with pytest.raises(DataError, match="characters"):
        guard.score("toxic " * 100_000)


def test_an_sae_of_another_model(model: Any, made: Any, tmp_path: Path) -> None:
    scan, texts, _ = made
    with pytest.raises(ConfigError, match="wide"):
        risk_scan(model, {"one": make_sae(d_in=16)}, texts, tmp_path / "scan")
    with pytest.raises(ConfigError, match="not linear in latents"):
        export_guard(risk_inputs(scan, texts), "storm", model, make_sae(), sae_id="one", detector="words",
                     config=CONFIG)  # fmt: skip
    with pytest.raises(ConfigError, match="no autoencoder 'two'"):
        risk(scan, texts, ["storm"], sae_id="two", config=CONFIG)


def test_texts_that_the_scan_lacks(made: Any) -> None:
    scan, texts, _ = made
    more = LabelledTexts.of([*texts, LabelledText("new", "quite new", frozenset({"none"}), "a", "")])
    with pytest.raises(DataError, match="lacks 1 of 211 texts"):
        risk(scan, more, ["storm"], config=CONFIG)
    with pytest.raises(ConfigError, match="no text is labelled 'hail'"):
        risk(scan, texts, ["hail"], config=CONFIG)
    with pytest.raises(ConfigError, match="no text is in 'fr'"):
        risk(scan, texts, ["storm"], config=CONFIG.model_copy(update={"languages": ("fr",)}))
    with pytest.raises(ConfigError, match="no domain"):
        risk(scan, texts, [], config=CONFIG)
