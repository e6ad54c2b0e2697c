"""Suites: one pass for many autoencoders, each as if alone; folders, kills, resumes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_process
import yaml
from feature_corpus import tiny
from token_texts import texts
from train_process import CONFIG, STAGES, SUITE, train

from seamark.errors import ConfigError, DataError, ModelError, RunError
from seamark.features import (
    SAESpec,
    SAETraining,
    StageConfig,
    TrainedSuite,
    TrainingConfig,
    activations,
    make_suite,
    train_sae,
    train_suite,
    training,
)
from seamark.features.metrics import TIMINGS, read_metrics
from seamark.model.hookpoints import find_family
from seamark.run import Run
from seamark.sae import FitLog, SparseAutoencoder
from seamark.text.rendering import Rendered
from tiny import tiny_hooked
from tiny_run import environment

STAGE = StageConfig(name="general", positions="tokens", epochs=2, lr=3e-3, batch_size=64)


@pytest.fixture(autouse=True)
def _one_thread_and_small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(activations, "CHUNK", 128)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedSuite, Path]:
    """A run that nothing interrupted."""
    before, chunk = torch.get_num_threads(), activations.CHUNK
    torch.set_num_threads(1)
    activations.CHUNK = 128
    folder = tmp_path_factory.mktemp("straight") / "run"
    trained = train(folder)
    torch.set_num_threads(before)
    activations.CHUNK = chunk
    return trained, folder


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics file without what differs between two runs of the same."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(folder / "metrics.jsonl")]


def assert_same(folder: Path, straight: tuple[TrainedSuite, Path]) -> None:
    trained, whole = straight
    for sae_id, sae in trained.saes.items():
        found = SparseAutoencoder.from_pretrained(folder / "saes" / sae_id)
        assert found.fingerprint() == sae.fingerprint(), sae_id
    assert numbers(folder) == numbers(whole)
    assert (folder / "result.json").read_text() == (whole / "result.json").read_text()
    assert not (folder / "checkpoints").exists()


# -- one pass for many ----------------------------------------------------------------------------------------------

VARIANTS = {
    **SUITE,
    "topk-wide": SAESpec(hookpoint="layers.2", k=12, expansion=4, seed=3, lr=1e-3),
    "relu": SAESpec(hookpoint="layers.0", d_sae=64, activation="relu", sparsity=0.01, scale="expected_norm"),
    "sail": SAESpec(hookpoint="layers.1.mlp", d_sae=64, k=5, activation="topk_relu", loss="squared", normalize="none",
                    b_dec_init="geometric_median"),
}  # fmt: skip


def test_each_of_a_suite_is_bit_equal_to_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    together = train_suite(tiny(), texts(12), VARIANTS, STAGES[:1], CONFIG)
    assert set(together.saes) == set(VARIANTS)
    for sae_id, spec in VARIANTS.items():
        alone = train_suite(tiny(), texts(12), {sae_id: spec}, STAGES[:1], CONFIG)
        assert alone.saes[sae_id].fingerprint() == together.saes[sae_id].fingerprint(), sae_id
        assert alone.quality[sae_id] == together.quality[sae_id]
        assert [e.loss for e in alone[sae_id].log] == [e.loss for e in together[sae_id].log]


def test_companions_do_not_change_bits_where_the_block_is_given_in_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Five hookpoints, several blocks: the order of positions is that of each hookpoint alone."""
    rooms: list[tuple[int, int]] = []
    whole = activations.empty_block
    monkeypatch.setattr(activations, "empty_block", lambda n, d, **k: rooms.append((n, d)) or whole(n, d, **k))
    config = CONFIG.model_copy(update={"buffer_bytes": 200 * 4 * 32})
    hookpoints = ("layers.0", "layers.0.attn", "layers.1", "layers.1.mlp", "layers.2")
    suite = {h: SAESpec(hookpoint=h, k=4, d_sae=40) for h in hookpoints}
    together = train_suite(tiny(), texts(12), suite, [STAGE], config, out=tmp_path / "together")
    assert rooms[:5] == [(200, 32)] * 5  # the bytes are those of each hookpoint's block
    for sae_id in ("layers.0", "layers.2"):
        alone = train_suite(tiny(), texts(12), {sae_id: suite[sae_id]}, [STAGE], config)
        assert alone.saes[sae_id].fingerprint() == together.saes[sae_id].fingerprint(), sae_id
    asked = json.loads((tmp_path / "together" / "run.json").read_text())["asked"]["training"]
    assert (asked["block"], asked["buffer_bytes"]) == (200, 200 * 4 * 32)
    other = CONFIG.model_copy(update={"buffer_bytes": 100 * 4 * 32})
    changed = train_suite(tiny(), texts(12), {"layers.2": suite["layers.2"]}, [STAGE], other)
    assert changed.saes["layers.2"].fingerprint() != together.saes["layers.2"].fingerprint()


def test_train_sae_is_a_suite_of_one() -> None:
    config = SAETraining(**VARIANTS["topk"].model_dump(), buffer_tokens=700, batch_tokens=600, held_out=0.2)
    one = train_sae(tiny(), texts(12), config, STAGES)
    suite = train_suite(tiny(), texts(12), {"topk": VARIANTS["topk"]}, STAGES, CONFIG)
    assert one.sae.fingerprint() == suite.saes["topk"].fingerprint()
    assert one.quality == suite.quality["topk"]
    assert [s["last_loss"] for s in one.stages] == [s["last_loss"] for s in suite["topk"].stages]


def test_every_variant_learns_and_says_what_it_is(straight: tuple[TrainedSuite, Path]) -> None:
    trained, folder = straight
    for sae_id, spec in SUITE.items():
        first, second = trained[sae_id].stages
        assert first["last_loss"] < 0.9 * first["first_loss"], sae_id
        assert second["quality"] == trained[sae_id].quality.model_dump(mode="json")  # type: ignore[union-attr]
        config = SparseAutoencoder.from_pretrained(folder / "saes" / sae_id).config
        assert (config.hookpoint, config.activation, config.d_sae) == (spec.hookpoint, spec.activation, spec.d_sae)
    result = json.loads((folder / "result.json").read_text())
    assert result["quality"]["topk"]["l0"] == 6.0
    assert result["choices"]["encoder"] == dict.fromkeys(SUITE, "fp32")


def test_metrics_are_one_line_for_each_logged_step(straight: tuple[TrainedSuite, Path]) -> None:
    trained, folder = straight
    lines = read_metrics(folder / "metrics.jsonl")
    assert {(e["stage"], e["sae"]) for e in lines} == {(s.name, i) for s in STAGES for i in SUITE}
    mine = [e for e in lines if e["stage"] == "general" and e["sae"] == "aux"]
    steps = mine[0]["steps"]
    assert [e["step"] for e in mine] == sorted({*range(0, steps, 4), steps - 1})
    assert mine[-1]["positions"] == trained.stages[0]["positions"]
    last = mine[-1]
    assert 0 < last["fvu"] < 1
    assert 0 < last["cosine"] < 1
    assert 0 <= last["dead_share"] < 1
    assert last["per_second"] > 0
    assert last["seconds_left"] == 0
    fields = [{k: v for k, v in e.items() if k not in ("stage", "sae")} for e in lines if e["sae"] == "aux"]
    assert [e for e in trained.log if e.name == "aux"] == [FitLog("aux", **f) for f in fields]


def test_one_pass_of_the_model_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def count(n: int) -> int:
        passes.clear()
        model = tiny_hooked("llama")
        find_family(model.hf)[1][0].register_forward_hook(lambda *_: passes.append(1))
        suite = {f"s{i}": SAESpec(hookpoint=f"layers.{i % 3}", k=4, d_sae=40) for i in range(n)}
        train_suite(model, texts(6), suite, [STAGE], TrainingConfig(batch_tokens=600, buffer_tokens=200))
        return len(passes)

    assert count(1) == count(7)


# -- folders and interruptions --------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(("stage", "step"), [
    ("general", 5), ("general", 61), ("safety", 0), ("safety", 13),
])  # fmt: skip
def test_stopped_at_any_step_it_ends_in_the_same_weights(
    stage: str, step: int, straight: tuple[TrainedSuite, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, stage, step)
        with pytest.raises(Stop):
            train(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def stop_at(patched: pytest.MonkeyPatch, stage: str, step: int) -> None:
    whole = training.Metrics.__call__

    def call(self: Any, entry: FitLog) -> None:
        if (self._stage, entry.step) == (stage, step):
            raise Stop
        whole(self, entry)

    patched.setattr(training.Metrics, "__call__", call)


@pytest.mark.parametrize("when", ["saes", "report", "measured"])
def test_stopped_between_stages(
    when: str, straight: tuple[TrainedSuite, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    target: dict[str, tuple[Any, str]] = {
        "saes": (SparseAutoencoder, "save_pretrained"), "report": (training.TrainingFolder, "save"),
        "measured": (training, "qualities"),
    }  # fmt: skip
    with monkeypatch.context() as patched:
        # Checkpoints save autoencoders too: only once the first stage is trained.
        whole = training._Training._report

        def report(*a: Any) -> Any:
            found = whole(*a) if when != "measured" else stop()
            patched.setattr(*target[when], stop)
            return found

        patched.setattr(training._Training, "_report", report)
        with pytest.raises(Stop):
            train(tmp_path / "run")
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def preferring(patched: pytest.MonkeyPatch, encoding: str, precision: str) -> None:
    """A machine on which these are the fastest, whatever is asked."""
    patched.setattr(training, "choose_encoding", lambda *_: encoding)
    patched.setattr(training, "resolve_precision", lambda *_: precision)


@pytest.mark.parametrize(("stage", "step"), [("general", 61), ("safety", 13)])
def test_a_restart_keeps_the_number_formats_it_was_begun_with(
    stage: str, step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Measured again, others may win: those of the folder stay, in checkpoints, in later stages and in the result."""
    preferring(monkeypatch, "bf16", "bf16")
    straight = train(tmp_path / "straight"), tmp_path / "straight"
    formats = {"precision": "bf16", "encoder": dict.fromkeys(SUITE, "bf16")}
    assert straight[0].choices == formats
    with monkeypatch.context() as patched:
        stop_at(patched, stage, step)
        with pytest.raises(Stop):
            train(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["choices"] == formats
    preferring(monkeypatch, "fp32", "fp32")
    resumed = train(tmp_path / "run")
    assert resumed.choices == formats
    assert {entry.encoding for entry in resumed.log} == {"bf16"}
    assert_same(tmp_path / "run", straight)


def process(folder: Path) -> subprocess.Popen[bytes]:
    script = Path(train_process.__file__)
    env = environment() | {"PYTHONPATH": str(script.parent)}
    return subprocess.Popen([sys.executable, str(script), str(folder)], env=env, stderr=subprocess.PIPE)


def test_killed_at_random_points_a_process_ends_in_the_same_weights(
    straight: tuple[TrainedSuite, Path], tmp_path: Path
) -> None:
    folder, lines = tmp_path / "run", len(numbers(straight[1]))
    killed_in = set()
    for after in (random.Random(1).randint(1, lines // 3), random.Random(2).randint(2 * lines // 3, lines - 8)):
        with process(folder) as running:
            file = folder / "metrics.jsonl"
            while running.poll() is None and (not file.exists() or len(file.read_bytes().splitlines()) < after):
                time.sleep(0.001)
            running.kill()
        if running.returncode == -9:
            killed_in.add(read_metrics(file)[-1]["stage"])
    assert killed_in
    with process(folder) as running:
        assert running.wait() == 0, running.stderr.read().decode()  # type: ignore[union-attr]
    assert_same(folder, straight)


def test_checkpoints_can_be_used_while_training_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, "general", 40)
        with pytest.raises(Stop):
            train(tmp_path)
    found = sorted((tmp_path / "checkpoints" / "general").glob("step-*"))
    assert 1 <= len(found) <= 2
    for sae_id, spec in SUITE.items():
        sae = SparseAutoencoder.from_pretrained(found[-1] / sae_id)
        assert sae.config.hookpoint == spec.hookpoint
        assert sae(torch.randn(5, 32)).shape == (5, 32)


def test_a_finished_run_is_not_done_again(
    straight: tuple[TrainedSuite, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight[1], tmp_path / "run"))
    monkeypatch.setattr(training, "fit", None)
    again = train(folder)
    assert again.stages == straight[0].stages
    assert again.log == straight[0].log
    assert {i: s.fingerprint() for i, s in again.saes.items()} == {
        i: s.fingerprint() for i, s in straight[0].saes.items()
    }


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "suite": (lambda f: train_suite(tiny(), texts(20), SUITE | {"topk": SAESpec(hookpoint="layers.2", k=7, d_sae=96)},
                                    STAGES, CONFIG, out=f), r"suite\.topk\.k: 6 → 7"),
    "stages": (lambda f: train_suite(tiny(), texts(20), SUITE, STAGES[:1], CONFIG, out=f), r"stages: "),
    "rate": (lambda f: train_suite(tiny(), texts(20), SUITE,
                                   (STAGES[0].model_copy(update={"lr": 0.1}), STAGES[1]), CONFIG, out=f),
             r"stages\[0\]\.lr: 0\.003 → 0\.1"),
    "seed": (lambda f: train_suite(tiny(), texts(20), SUITE, STAGES, CONFIG.model_copy(update={"seed": 1}), out=f),
             r"training\.seed: 0 → 1"),
    "texts": (lambda f: train_suite(tiny(), texts(19), SUITE, STAGES, CONFIG, out=f),
              r"texts\.general\.(train|held_out): "),
    "model": (lambda f: train_suite(tiny_hooked("llama", seed=1), texts(20), SUITE, STAGES, CONFIG, out=f), "model: "),
    "one less": (lambda f: train_suite(tiny(), texts(20), {"topk": SUITE["topk"]}, STAGES, CONFIG, out=f),
                 r"suite\.aux: .* → null"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_of_another_run_is_refused_and_says_what_changed(
    what: str, straight: tuple[TrainedSuite, Path]
) -> None:
    call, problem = CHANGES[what]
    with pytest.raises(ConfigError, match=problem) as caught:
        call(straight[1])
    assert "holds a run of something else" in str(caught.value)
    assert "Choose another folder" in str(caught.value)


def test_what_decides_nothing_may_change(straight: tuple[TrainedSuite, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight[1], tmp_path / "run"))
    other = CONFIG.model_copy(update={"checkpoint_every": 500, "spill": tmp_path / "spill", "log_every": 1})
    train_suite(tiny(), texts(20), SUITE, STAGES, other, out=folder)


def test_two_at_once_in_one_folder(tmp_path: Path) -> None:
    with Run(tmp_path), pytest.raises(RunError, match="another process"):
        train(tmp_path)


def test_the_folder_of_one_is_the_autoencoder(tmp_path: Path) -> None:
    config = SAETraining(hookpoint="layers.2", k=6, d_sae=96)
    trained = train_sae(tiny(), texts(8), config, STAGES, out=tmp_path)
    assert SparseAutoencoder.from_pretrained(tmp_path).fingerprint() == trained.sae.fingerprint()
    assert json.loads((tmp_path / "result.json").read_text())["quality"]["n"] == trained.quality.n  # type: ignore[union-attr]
    again = train_sae(tiny(), texts(8), config, STAGES, out=tmp_path)
    assert again.sae.fingerprint() == trained.sae.fingerprint()
    with pytest.raises(ConfigError, match=r"layers\.2-topk6-d96"):
        train_sae(tiny(), texts(8), config.model_copy(update={"k": 7}), STAGES, out=tmp_path)


# -- names ----------------------------------------------------------------------------------------------------------


def test_ids_can_be_read() -> None:
    suite = make_suite(["layers.11", "layers.2.mlp"], [
        {"activation": "topk", "k": [32, 64], "expansion": [8, 0.5]},
        {"activation": "jumprelu", "sparsity": [0.01, 1.0], "bandwidth": 0.001},
        {"k": 16, "d_sae": 1000, "seed": [0, 1], "name": "b"},
    ])  # fmt: skip
    assert len(suite) == 16
    assert {"layers.11-topk64-x8", "layers.2.mlp-topk32-x0.5", "layers.11-jumprelu-s0.01-x8",
            "layers.2.mlp-jumprelu-s1-x8", "layers.11-topk16-d1000-seed1-b"} <= set(suite)  # fmt: skip
    assert suite["layers.11-jumprelu-s0.01-x8"].bandwidth == 0.001


@pytest.mark.parametrize(("variants", "problem"), [
    ([{"kk": 3}], r"variant 1: kk: Extra inputs"),
    ([{}, {"k": "many"}], r"variant 2: k: "),
    ([{"activation": "relu", "k": [1, 2]}], "two autoencoders would be named layers.1-relu-x8"),
    ([{}, {}], "two autoencoders would be named"),
    ([{"k": []}], "no autoencoder"),
    ([], "no autoencoder"),
])  # fmt: skip
def test_suites_that_make_no_sense(variants: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_suite(["layers.1"], variants)


def test_the_guide_names_every_setting_with_its_default() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    said: dict[str, str] = {}
    for line in guide.partition("### Suite recipes")[2].partition("\n### ")[0].splitlines():
        cells = line.replace("`", "").split(" | ")
        if len(cells) == 3:  # one default for each key of the row, or one for all
            keys, defaults = cells[0].removeprefix("| ").split(", "), cells[1].split(", ")
            said |= dict(zip(keys, defaults * len(keys), strict=False))
    for part in (SAESpec, TrainingConfig):
        for name, field in part.model_fields.items():
            value = yaml.safe_load(said[name])
            if name != "scale" and value == "none":
                value = None
            assert (float(value) if isinstance(field.default, float) else value) == field.default, name


# -- what goes wrong ------------------------------------------------------------------------------------------------


def with_bad_token(token: int) -> Any:
    model = tiny_hooked("llama")
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[token] = float("nan")
    return model


def test_bad_activations_stop_training_with_the_last_checkpoint_intact(tmp_path: Path) -> None:
    rendered = texts(40)
    rare = texts(1)[0]
    ids = rare.input_ids.copy()
    ids[-3:] = 499  # in no other text
    assert not any((t.input_ids == 499).any() for t in rendered)
    spoiled = Rendered("spoiled", ids, rare.offsets, rare.text, rare.prompt_span, rare.response_span, rare.special)
    suite = {"one": SAESpec(hookpoint="layers.2", k=6, d_sae=96)}
    config = TrainingConfig(buffer_tokens=300, batch_tokens=600, held_out=0.0, checkpoint_every=2)
    order = [*rendered, spoiled]
    for seed in range(9):  # one whose first block is sound
        folder, seeded = tmp_path / str(seed), config.model_copy(update={"seed": seed})
        with pytest.raises(DataError, match="NaN") as caught:
            train_suite(with_bad_token(499), order, suite, [STAGE], seeded, out=folder)
        found = sorted((folder / "checkpoints" / "general").glob("step-*"))
        if found:
            break
    assert "layers.2 of text spoiled, step " in str(caught.value)
    assert "of stage general" in str(caught.value)
    assert SparseAutoencoder.from_pretrained(found[-1] / "one").config.k == 6
    assert all(p.suffix != ".partial" for p in found)


def test_errors() -> None:
    one = {"s": SAESpec(hookpoint="layers.2", k=4, d_sae=40)}
    with pytest.raises(ConfigError, match="no autoencoder"):
        train_suite(tiny(), texts(2), {}, [STAGE])
    with pytest.raises(ConfigError, match="no stage"):
        train_suite(tiny(), texts(2), one, [])
    with pytest.raises(ConfigError, match="two stages are named 'general'"):
        train_suite(tiny(), texts(2), one, [STAGE, STAGE])
    with pytest.raises(ConfigError, match=r"'\.\./x' cannot name a folder"):
        train_suite(tiny(), texts(2), {"../x": one["s"]}, [STAGE])
    with pytest.raises(ConfigError, match=r"^wide: .*k = 50 is more than d_sae = 40"):
        train_suite(tiny(), texts(2), {"wide": SAESpec(hookpoint="layers.2", k=50, d_sae=40)}, [STAGE])
    with pytest.raises(ModelError, match=r"layers\.9"):
        train_suite(tiny(), texts(2), {"s": SAESpec(hookpoint="layers.9")}, [STAGE])
    with pytest.raises(DataError, match="stage general: no texts"):
        train_suite(tiny(), iter(()), one, [STAGE])
    with pytest.raises(DataError, match="stage general: no texts"):
        train_suite(tiny(), {"other": texts(2)}, one, [STAGE])


def test_texts_may_be_iterators_shared_by_stages() -> None:
    one = {"s": SAESpec(hookpoint="layers.2", k=4, d_sae=40)}
    lists = train_suite(tiny(), texts(6), one, STAGES)
    assert train_suite(tiny(), iter(texts(6)), one, STAGES).saes["s"].fingerprint() == lists.saes["s"].fingerprint()


def test_stages_cut_texts_and_positions() -> None:
    one = {"s": SAESpec(hookpoint="layers.2", k=4, d_sae=40)}
    config = TrainingConfig(held_out=0.0)
    cut = STAGE.model_copy(update={"max_length": 20, "epochs": 1})
    rendered = texts(6)
    assert min(map(len, rendered)) > 20
    found = train_suite(tiny(), rendered, one, [cut], config).stages[0]["positions"]
    assert 0 < found <= 20 * len(rendered)
    few = STAGE.model_copy(update={"max_positions": 100, "epochs": 1})
    assert train_suite(tiny(), rendered, one, [few], config).stages[0]["positions"] == 100


def test_memory_of_the_block_in_bytes() -> None:
    assert TrainingConfig(buffer_bytes=1 << 20).block(32) == (1 << 20) // 128
    assert TrainingConfig(buffer_bytes=1).block(32) == 1
    assert TrainingConfig().block(32) == 1 << 18


# -- trackers -------------------------------------------------------------------------------------------------------


def test_metrics_go_to_a_tracker_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    seen: dict[str, list[Any]] = {"init": [], "log": [], "finish": []}
    module = types.ModuleType("trackio")
    module.init = lambda **k: print("hello") or seen["init"].append(k)  # type: ignore[attr-defined]
    module.log = lambda numbers: seen["log"].append(numbers)  # type: ignore[attr-defined]
    module.finish = lambda: seen["finish"].append(1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    one = {"s": SAESpec(hookpoint="layers.2", k=4, d_sae=40)}
    trained = train_suite(tiny(), texts(4), one, [STAGE], out=tmp_path / "mine", track="trackio")
    assert capsys.readouterr().out == ""
    (init,) = seen["init"]
    assert (init["project"], init["name"]) == ("seamark", "mine")
    assert init["config"]["suite"]["s"]["k"] == 4
    assert len(seen["log"]) == len(trained.log)
    assert {"s/loss", "s/fvu", "s/l0", "s/dead_share", "s/positions", "stage"} <= set(seen["log"][0])
    assert seen["finish"] == [1]
    said = json.dumps([seen["init"], seen["log"]]) + (tmp_path / "mine" / "run.json").read_text()
    assert "secret-key" not in said


def test_after_a_restart_the_tracker_is_told_what_came_before(
    straight: tuple[TrainedSuite, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A tracker's run is a new one then: without the earlier lines its curves would begin in the middle."""
    runs: list[list[dict[str, Any]]] = []
    module = types.ModuleType("wandb")
    module.init = lambda **_: runs.append([])  # type: ignore[attr-defined]
    module.log = lambda numbers: runs[-1].append(numbers)  # type: ignore[attr-defined]
    module.finish = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    with monkeypatch.context() as patched:
        stop_at(patched, "safety", 13)
        with pytest.raises(Stop):
            train(tmp_path / "run", track="wandb")
    train(tmp_path / "run", track="wandb")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    expected = [(e["stage"], e["sae"], e["loss"]) for e in lines]
    assert [(e["stage"], i, e[f"{i}/loss"]) for e in runs[1] for i in SUITE if f"{i}/loss" in e] == expected
    assert 0 < len(runs[0]) < len(runs[1])
    assert numbers(tmp_path / "run") == numbers(straight[1])


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_missing_is_refused_at_once(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{name} is not installed. pip install {name}"):
        train_suite(tiny(), texts(2), SUITE, [STAGE], track=name)
