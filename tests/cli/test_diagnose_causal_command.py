"""`seamark diagnose causal`: the table, the result, evidence in an atlas, and what a user can get wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose.causal_report import CausalReport
from seamark.features import FeatureSet
from seamark.sae import SparseAutoencoder, sae_config
from seamark.show.numbers import number, signed
from tiny_run import Place, call, the_error


class Made:
    """A scan, a contrast and an atlas of a tiny reward model."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.scan, self.found, self.atlas = place, folder / "scan", folder / "found", folder / "atlas.db"
        self.sae = folder / "mine"
        SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=3).save_pretrained(self.sae)
        for words in (
            ["scan", "run", "--model", place.reward, "--sae", self.sae, *place.options, "--out", self.scan],
            ["contrast", self.scan, "--out", self.found, "--top", 6],
            ["atlas", "build", "--scan", self.scan, "--contrast", self.found, "--out", self.atlas],
        ):
            code, _, err = call(*words)
            assert code == 0, err

    def words(self, **other: Any) -> list[Any]:
        options = {"model": self.place.reward, "features": self.found, "scan": self.scan, "sae": self.sae,
                   "controls": 4, "control-pairs": 6, "dose-pairs": 4, "steer-controls": 1, "draws": 50,
                   "top": 3} | other  # fmt: skip
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        return ["diagnose", "causal", *flags, *self.place.options]


@pytest.fixture(scope="module")
def made(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(place, tmp_path_factory.mktemp("causal"))


def test_table_result_and_evidence(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    atlas = shutil.copy(made.atlas, tmp_path / "atlas.db")
    code, out, err = call(*made.words(out=tmp_path, atlas=atlas))
    assert code == 0, err
    found = json.loads((tmp_path / "result.json").read_text("utf-8"))
    report = CausalReport.model_validate({k: v for k, v in found.items() if k not in ("verdicts", "evidence_rows")})
    top = FeatureSet.load(made.found / "features.json").features[:3]
    assert [(f.sae, f.latent, f.sign) for f in report.features] == [(f.sae, f.latent, f.sign) for f in top]
    assert (report.n_pairs, report.control_pairs, report.controls) == ({"safety": 36, "chat": 24}, 6, 4)
    assert report.dose_pairs == {"safety": 4, "chat": 4}
    assert sum(found["verdicts"].values()) == 3
    said = " ".join(out.split())
    assert "rank correlation of gradients and ablation" in said
    assert "features raised by Q, in the direction of the sign" in said
    assert f"{report.passes.run:,} texts read, {report.passes.saved:,} saved" in said
    assert "pairs that the features were found on: 36 of 36 safety, 24 of 24 chat" in said
    assert "note: 60 of 60 pairs are among those" in said
    ranges = [r for f in (*report.features, report.together) for r in (f.random_latents, f.random_directions)]
    fewest = min(r.n for r in ranges)
    assert (
        f"note: The level is coarser than 2.5 % where controls are fewer than 39: there are as few as {fewest}" in said
    )
    assert all(r.n + r.silent == 4 for r in ranges)
    assert all(said.count(f"({n})") == [r.n for r in ranges].count(n) for n in {r.n for r in ranges})
    assert fewest > 0
    assert all(f"by mass {signed(r.limit_by_mass)} (× {number(r.mass)})" in said for r in ranges[::2])
    assert all(f"{f.sae}/{f.latent}" in said for f in top)
    assert found["evidence_rows"] == 27
    with Atlas.open(atlas) as opened:
        for f in report.features:
            evidence = {e.kind: e for e in opened.feature(f.sae, f.latent).evidence if e.run == report.key}
            assert set(evidence) == {
                "causal_evidence", "causal_effect", "causal_margin", "causal_accuracy", "causal_difference",
                "attribution", "steer_effect", "steer_difference", "dose_monotonicity",
            }  # fmt: skip
            assert evidence["causal_effect"].estimate == f.target.reward
            assert evidence["causal_evidence"].estimate.reason == f.why
            assert evidence["causal_evidence"].estimate.value == {"yes": 1.0, "no": 0.0}.get(f.verdict)
        assert [r.kind for r in opened.runs() if r.id == report.key] == ["causal"]
        before = opened.counts()["evidence"]
    code, again, err = call(*made.words(atlas=atlas), "--json")
    assert code == 0, err
    assert json.loads(again) == found
    with Atlas.open(atlas) as opened:
        assert opened.counts()["evidence"] == before


def test_mistakes(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=9).save_pretrained(other)
    strange = tmp_path / "strange.db"
    AtlasWriter.open(strange, create=True).close()
    cases: list[tuple[list[Any], str]] = [
        (made.words(model=made.place.causal), "gives no rewards"),
        (made.words(sae=other), "another autoencoder called 'mine'"),
        (made.words(sae=f"yours={made.sae}"), "no autoencoder 'mine'"),
        (made.words(scan=tmp_path), "no finished scan here"),
        (made.words(features=tmp_path / "none.json"), "feature set"),
        (made.words(group="code"), "no pair of group 'code'"),
        (made.words(others="safety"), "compared with itself"),
        (made.words(top=0), "0 features"),
        (made.words(amount=0), "the amount is 0"),
        (made.words(atlas=tmp_path / "none.db"), "none.db"),
        (made.words(atlas=strange), "the atlas does not know the autoencoder 'mine'"),
    ]
    for words, message in cases:
        assert message in the_error(*call(*words)), words
