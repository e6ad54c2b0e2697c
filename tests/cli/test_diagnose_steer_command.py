"""`seamark diagnose steer`: pairs, one answer, generation, units from a scan, and what a user can get wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seamark.diagnose import Intervention, SteeredPairs, SteeredReward, SteeredText, steer_answer
from seamark.features import Scan
from seamark.model import RewardModel
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call, the_error

TEXT, ANSWER = "Is it safe to mix bleach?", "No, please never do that."


def make(folder: Path, seed: int = 3, hookpoint: str = "layers.2") -> Path:
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint=hookpoint), seed=seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes")
    make(folder / "mine")
    make(folder / "early", 4, "layers.0")
    return folder


@pytest.fixture(scope="module")
def scan(place: Place, saes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scan") / "scan"
    words = ["--sae", saes / "mine", "--sae", saes / "early", *place.options, "--out", out]
    assert call("scan", "run", "--model", place.reward, *words)[0] == 0
    return out


def with_q(scan: Path, sae: str) -> int:
    return int(np.flatnonzero(np.isfinite(Scan.open(scan).q(sae)))[0])


def steer(*words: object) -> str:
    code, out, err = call("diagnose", "steer", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return out


def test_pairs(place: Place, saes: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    latent = with_q(scan, "mine")
    words: list[Any] = ["--model", place.reward, "--sae", saes / "mine", "--sae", saes / "early", "--scan", scan,
                        "--feature", f"mine/{latent}", "--feature", "early/9=ablate", *place.options]  # fmt: skip
    code, out, err = call("diagnose", "steer", *words, "--amount", 2, "--out", tmp_path)
    assert code == 0, err
    assert f"mine/{latent} add 2, early/9 ablate: change of rewards" in " ".join(out.split())
    found = SteeredPairs.model_validate_json(steer(*words, "--amount", 2))
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == found.model_dump(mode="json")
    assert [(g.group, g.n_pairs) for g in found.groups] == [("safety", 36), ("chat", 24)]
    assert all(g.chosen.value and g.chosen.low is not None for g in found.groups)
    assert found.interventions == (Intervention(sae="mine", latent=latent, amount=2.0),
                                   Intervention(sae="early", latent=9, action="ablate", amount=2.0))  # fmt: skip
    assert all(f"{100 * g.accuracy_after.value:.1f}" in out for g in found.groups if g.accuracy_after.value is not None)


def test_one_answer(place: Place, saes: Path, scan: Path) -> None:
    latent = with_q(scan, "mine")
    words: list[Any] = ["--model", place.reward, "--sae", saes / "mine", "--scan", scan, "--text", TEXT, "--answer",
                        ANSWER, "--where", "2:5,7:9", "--feature", f"mine/{latent}=add:-1.5"]  # fmt: skip
    found = SteeredReward.model_validate_json(steer(*words))
    model, suite = RewardModel.from_pretrained(place.reward), {"mine": SparseAutoencoder.from_pretrained(saes / "mine")}
    asked = Intervention(sae="mine", latent=latent, amount=-1.5, where=((2, 5), (7, 9)))
    expected = steer_answer(model, suite, [asked], TEXT, ANSWER, q={"mine": Scan.open(scan).q("mine")})
    assert found.interventions == (asked,)
    assert found.after == pytest.approx(expected.after, abs=1e-6)
    assert found.after != found.before
    assert "reward before" in call("diagnose", "steer", *words)[1]


def test_the_scan_of_another_model_is_told(place: Place, saes: Path, scan: Path) -> None:
    words = ["--sae", saes / "mine", "--scan", scan, "--text", TEXT, "--feature", "mine/1=ablate"]
    asked = ["--model", place.causal, *words, "--generate", 2]
    (caveat,) = SteeredText.model_validate_json(steer(*asked)).caveats
    assert caveat.startswith("The scan was made with another model")
    assert f"note: {caveat}" in " ".join(call("diagnose", "steer", *asked)[1].split())
    same = ["--model", place.reward, *words, "--answer", ANSWER]
    assert SteeredReward.model_validate_json(steer(*same)).caveats == ()
    assert "note:" not in call("diagnose", "steer", *same)[1]


def test_generation(place: Place, saes: Path) -> None:
    words: list[Any] = ["--model", place.causal, "--sae", saes / "mine", "--text", TEXT, "--generate", 6]
    features = [f"--feature=mine/{i}" for i in range(64)]
    found = SteeredText.model_validate_json(
        steer(*words, *features, "--action", "scale", "--amount", 9, "--where", "all", "--temperature", 1, "--seed", 5)
    )
    assert (found.how.max_new_tokens, found.how.temperature, found.how.seed) == (6, 1.0, 5)
    assert found.differs_at is not None
    same = SteeredText.model_validate_json(steer(*words, *features, "--action", "scale"))
    assert same.differs_at is None
    assert "the same answer" in call("diagnose", "steer", *words, "--feature", "mine/1=scale:1")[1]


def test_mistakes(place: Place, saes: Path, scan: Path, tmp_path: Path) -> None:
    reward, mine = ["--model", place.reward], ["--sae", saes / "mine"]
    other, deep = make(tmp_path / "other" / "mine", seed=9), make(tmp_path / "deep", hookpoint="layers.9")
    one, said = ["--feature", "mine/1"], ["--text", TEXT, "--answer", ANSWER]
    ablate = ["--feature", "mine/1=ablate"]
    cases: list[tuple[list[Any], str]] = [
        ([*reward, *one, *said], "no SAE is given"),
        ([*reward, *mine, *said], "no feature is given"),
        ([*reward, *mine, *one, *said], "no Q_f is known of mine"),
        ([*reward, *mine, "--feature", "mine", *said], "'mine' is no feature"),
        ([*reward, *mine, "--feature", "mine/1=raise:2", *said], "is no feature"),
        ([*reward, *mine, "--feature", "mine/1=add:much", *said], "'much' is no amount"),
        ([*reward, *mine, "--feature", "mine/64=ablate", *said], "no latent 64; there are 64"),
        ([*reward, *mine, "--feature", "yours/1=ablate", *said], "no autoencoder 'yours'"),
        ([*reward, *mine, *one, *said, "--scan", scan, "--amount", "nan"], "the amount is nan"),
        ([*reward, *mine, *ablate, *said, "--where", "9:2"], "9:2 is no span of tokens"),
        ([*reward, *mine, *ablate, *said, "--where", "there"], "'there' names no tokens"),
        ([*reward, *mine, *ablate, *said, "--where", "900:901"], "no text reaches token 900"),
        ([*reward, "--sae", other, *one, *said, "--scan", scan], "another autoencoder called 'mine'"),
        ([*reward, "--sae", deep, "--feature", "deep/1=ablate", *said], "out of range: the model has 4 blocks"),
        ([*reward, *mine, *ablate, "--text", " ", "--answer", ANSWER], "the prompt is empty"),
        ([*reward, *mine, *ablate, "--text", "a " * 90_000, "--answer", ANSWER], "tokens; there is room for 256"),
        ([*reward, *mine, *ablate, "--answer", ANSWER], "no prompt is given"),
        ([*reward, *mine, *ablate, "--text", TEXT], "only language models generate"),
        ([*reward, *mine, *ablate, *said, "--generate", 4], "another one is to be generated"),
        ([*reward, *mine, *ablate, *said, *place.options], "a text and pairs are given"),
        (["--model", place.causal, *mine, *ablate, *place.options], "gives no rewards"),
        (["--model", place.causal, *mine, *ablate, "--text", TEXT, "--generate", 0], "greater than or equal to 1"),
    ]  # fmt: skip
    for words, message in cases:
        assert message in the_error(*call("diagnose", "steer", *words)), words
    shutil.rmtree(deep)
