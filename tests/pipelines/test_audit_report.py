"""`seamark audit report` on tiny models: faults named, labels ranked, files that come back and load into TRL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from seamark.audit.editing import undo_file
from seamark.cli.reports import result_rows
from seamark.errors import ConfigError
from seamark.pipelines import audit_report_scores
from seamark.pipelines.audit_report_page import Found, _share_line
from seamark.pipelines.evidence import CONTEXTS
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.stats import Estimate
from tiny import tiny_folder
from tiny_run import call, command, environment, the_error, tree, write_model, write_pairs

if str(Path(__file__).parents[1] / "explain") not in sys.path:  # the server lives with the tests of the LLM client
    sys.path.append(str(Path(__file__).parents[1] / "explain"))
from llm_server import Seen, Server

HOSTILE = "\u202e<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m {{ 7*7 }}"
SETTINGS = (
    "--set=reward.learning_rate=3e-3", "--set=reward.trainable_blocks=null", "--set=reward.max_length=96",
    "--set=reward.precision=fp32", "--set=sae.d_sae=64", "--set=sae.k=4",
    "--set=sae.hookpoint=layers.2", "--set=sae.precision=fp32", "--set=scan.precision=fp32",
    "--set=features.min_rating=2", "--set=features.count=6", "--set=features.candidates=48", "--workers=1",
)  # fmt: skip
WORDS = {"name": "verbosity", "group": "safety", "question": "how strongly the feature has to do with many words"}
CONTRADICTORY = ("p-03", "p-03-turned")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def faulty(folder: Path) -> dict[str, str]:
    """Safety pairs as strings, some faulty; chat pairs as chats with columns of their own."""
    found = write_pairs(folder, 72)
    safety = [
        r | {"id": f"p-{n:02d}", "category": ("a", "b")[n % 2]} for n, r in enumerate(rows_of(Path(found["safety"][0])))
    ]
    one = safety[3]
    safety += [
        one | {"id": "p-03-turned", "chosen": one["rejected"], "rejected": one["chosen"]},
        safety[5] | {"id": "p-05-loud", "prompt": safety[5]["prompt"].upper()},
        safety[6] | {"id": "p-06-hollow", "rejected": "\u200b \u200b"},
        safety[7] | {"id": "p-07-hostile", "prompt": f"{HOSTILE} number 7", "chosen": f"No. {HOSTILE}"},
    ]
    rows = [*safety, safety[8] | {"id": "copy"}, {"id": "none", "prompt": "Why?", "chosen": ""}, "not json\n"]
    chat = []
    for n, r in enumerate(rows_of(Path(found["chat"][0]))[:-1]):
        chat.append({
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
            "annotator": {"name": "x"} if n % 2 else 7,
        })  # fmt: skip
    return {"safety": write(folder / "safety-faulty.jsonl", rows), "chat": write(folder / "chats.jsonl", chat)}


class Audit:
    """A finished audit and its inputs."""

    def __init__(self, base: Path) -> None:
        self.base, self.out = base, base / "out"
        self.files = faulty(base)
        self.model = write_model(base / "base-model", "bert")
        self.code, self.stdout, self.stderr = self.run()

    def run(self, *more: str, out: Path | None = None) -> tuple[int, str, str]:
        pairs = [f"--pairs={g}={f}" for g, f in self.files.items()]
        return call("audit", "report", "--model", self.model, "--out", out or self.out, *pairs, *SETTINGS, *more)

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "result.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    made = Audit(tmp_path_factory.mktemp("audit"))
    assert made.code == 0, made.stderr
    return made


def plain_text(page: Path) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_a_base_is_said_and_faults_are_named_and_train_nothing(audit: Audit) -> None:
    assert "no reward model but a base" in audit.stderr
    result = audit.result
    assert result["trained_here"]
    assert result["rejected_rows"] == 3  # a copy, no rejected answer, no JSON
    faults = json.loads((audit.out / "data" / "faults.json").read_text(encoding="utf-8"))
    by_kind = {c["kind"]: c["pairs"] for c in faults["counts"]}
    assert (by_kind["contradiction"], by_kind["duplicate"], by_kind["empty"], by_kind["hostile"]) == (2, 2, 1, 1)
    left_out = set(faults["left_out"])
    assert left_out == {*CONTRADICTORY, "p-05-loud", "p-06-hollow"}
    trained = {r["id"] for r in rows_of(audit.out / "data" / "train.jsonl")}
    assert not trained & left_out
    training = json.loads((audit.out / "reward" / "training.json").read_text())
    assert training["n_pairs"] == len(trained) == sum(result["pairs"].values()) - len(left_out)
    assert json.loads((audit.out / "features" / "features.json").read_text())["provenance"]["n_pairs"] == 72
    text = plain_text(audit.out / "report.html")
    assert all(i in text for i in left_out)
    assert "not JSON" in text or "no JSON" in text or "JSON" in text


def test_every_pair_is_scored_by_every_cheap_method(audit: Audit) -> None:
    table = pq.read_table(audit.out / "scores" / "scores.parquet")
    lines = rows_of(audit.out / "scores" / "scores.jsonl")
    assert lines == table.to_pylist()
    assert len(lines) == sum(audit.result["pairs"].values()) == 76 + 48
    by_id = {r["id"]: r for r in lines}
    for method in audit_report_scores.CHEAP:
        assert all(by_id[i][method] is not None for i in CONTRADICTORY), method
        one, other = (by_id[i][method] for i in CONTRADICTORY)
        assert one == pytest.approx(-other, abs=1e-4), method  # the same pair turned round
    ranks = [r["rank"] for r in lines if r["group"] == "safety"]
    assert sorted(ranks) == list(range(1, 77))
    assert {r["rank"] for r in lines if r["group"] == "chat"} == {None}
    assert [r["left_out"] for r in lines].count(True) == 4
    assert audit.result["ranked_by"] == ["margin", "latents"]
    assert min(CONTRADICTORY, key=lambda i: by_id[i]["rank"]) == "p-03-turned"  # the one that says the wrong thing


@pytest.mark.parametrize("name", ["clean", "flipped"])
def test_undo_gives_the_rows_back_field_for_field(audit: Audit, name: str) -> None:
    edits = audit.out / "edits"
    for group, file in audit.files.items():
        back = undo_file(edits / f"{name}.jsonl", edits / f"{name}-manifest.json", group=group)
        lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        original = [r for r in map(json.loads, lines) if r.get("id") not in ("copy", "none")]
        assert [json.dumps(r) for r in back] == [json.dumps(r) for r in original]


def test_files_hold_what_their_names_say(audit: Audit) -> None:
    clean, flipped, removed = (rows_of(audit.out / "edits" / f"{n}.jsonl") for n in ("clean", "flipped", "removed"))
    gone = {r["id"] for r in removed}
    assert len(gone) == 3  # 4 % of 76
    scores = {r["id"]: r["rank"] for r in rows_of(audit.out / "scores" / "scores.jsonl")}
    assert {scores[i] for i in gone} == {1, 2, 3}
    assert not gone & {r["id"] for r in clean}
    turned = {r["id"]: r for r in flipped}
    assert all(
        (turned[r["id"]]["chosen"], turned[r["id"]]["rejected"]) == (r["rejected"], r["chosen"]) for r in removed
    )
    assert all(turned[r["id"]]["chosen"] == r["chosen"] for r in clean)


def test_files_load_into_trl(audit: Audit, tmp_path: Path) -> None:
    import datasets
    import transformers
    from trl import RewardConfig, RewardTrainer
    from trl.data_utils import is_conversational

    model = tiny_folder(tmp_path / "chat-model", "qwen2", "reward")
    for name in ("clean", "flipped", "removed"):
        path = str(audit.out / "edits" / f"{name}.jsonl")
        loaded = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
        assert {"prompt", "chosen", "rejected", "id"} <= set(loaded.column_names)
        assert len(loaded) == len(rows_of(Path(path)))
        assert all(is_conversational(row) for row in loaded)
        assert {type(v) for v in loaded["original"]} == {str}
    trainer = RewardTrainer(
        model=transformers.AutoModelForSequenceClassification.from_pretrained(model),
        processing_class=transformers.AutoTokenizer.from_pretrained(model), train_dataset=loaded,
        args=RewardConfig(output_dir=str(tmp_path / "trained"), report_to=[], max_length=None, use_cpu=True),
    )  # fmt: skip
    assert len(trainer.train_dataset) == 3
    assert len(trainer.train_dataset[0]["chosen_ids"]) > 10


def test_the_page_is_inert_and_says_what_is_missing(audit: Audit) -> None:
    page = (audit.out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "onerror" not in re.sub(r"&lt;img src=x onerror", "", page)
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    text = plain_text(audit.out / "report.html")
    for words in ("run `seamark audit experiment`", "--crossfit 5", "not run", "upper estimate", "clean-manifest.json",
                  "too few", "contradiction", "trained here"):  # fmt: skip
        assert words in text, words
    checks = audit.result["failure_signs"]
    assert {c["holds"] for c in checks if "flips" in c["name"]} == {None}
    assert any(c["holds"] is not None for c in checks)
    (opposed,) = (c for c in checks if "contradict" in c["name"])
    assert opposed["value"]["value"] == pytest.approx(len(CONTRADICTORY) / audit.result["pairs"]["safety"])
    (words,) = (c for c in checks if "than words" in c["name"])
    assert "Measured by `latents`" in words["note"]  # the margins were taught these labels
    assert words["value"]["low"] <= words["value"]["value"] <= words["value"]["high"]
    agreement = audit.result["agreement"]["safety"]
    assert words["value"]["value"] == pytest.approx(
        agreement["latents"]["value"] - agreement["bag_of_words"]["value"], abs=0.01
    )  # but for pairs that one of both could not score
    assert "mislabelled throughout" in text


def test_a_rerun_does_nothing_and_another_share_only_what_hangs_on_it(audit: Audit, tmp_path: Path) -> None:
    before = tree(audit.out)
    code, _, err = audit.run()
    assert code == 0
    assert "▸" not in err
    assert {k: v for k, v in tree(audit.out).items() if v != before[k]} == {}
    out = Path(shutil.copytree(audit.out, tmp_path / "out"))
    code, _, err = audit.run("--remove=0.1", out=out)
    assert code == 0
    assert re.findall(r"▸ (\S+)", err) == ["edits"]
    assert len(rows_of(out / "edits" / "removed.jsonl")) == 8


def test_broken_off_it_goes_on_to_the_same_result(
    audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = Path(shutil.copytree(audit.out, tmp_path / "out"))
    for made in ("scores", "findings", "evidence", "edits"):
        shutil.rmtree(out / made)
    for made in ("result.json", "report.html"):
        (out / made).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(audit_report_scores, "wrong_share", killed)
        code, _, err = audit.run(out=out)
    assert code == 130
    assert re.findall(r"▸ (\S+)", err) == ["scores"]
    assert not (out / "result.json").exists()
    code, _, err = audit.run(out=out)
    assert code == 0
    assert re.findall(r"▸ (\S+)", err) == ["scores", "findings", "evidence", "edits"]
    check_same(out, audit)


def check_same(out: Path, audit: Audit) -> None:
    """The same result and files; times aside, which extras hold too."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert {k for k, v in result.items() if v != audit.result[k]} <= {"stages", "extras"}
    for name in ("edits/clean.jsonl", "scores/scores.jsonl", "evidence/suspicious.json"):
        assert (out / name).read_bytes() == (audit.out / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "scan", "evidence"])
def test_killed_it_goes_on_to_the_same_result(audit: Audit, stage: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pairs = [f"--pairs={g}={f}" for g, f in audit.files.items()]
    words = command("audit", "report", "--model", audit.model, "--out", out, *pairs, *SETTINGS)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()) as process:
        end = time.monotonic() + 240
        while not (out / ".partial" / stage).exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
    assert not (out / "result.json").exists()
    code, _, err = audit.run(out=out)
    assert code == 0, err
    check_same(out, audit)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("reward"), "bert", "reward")


def test_a_reward_model_and_one_group_only(audit: Audit, reward: str, tmp_path: Path) -> None:
    code, out, err = call("audit", "report", "--model", reward, "--out", tmp_path, *SETTINGS,
                          f"--pairs=safety={audit.files['safety']}", "--by=safer", "--json")  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert not result["trained_here"]
    assert "is audited as it is" in err
    assert not (tmp_path / "reward").exists()
    assert {f["rating"] for f in result["features"]} == {None}
    assert result["ranked_by"] == ["safer"]
    assert result["overlap"] == {"missing": "there is no pair of another group"}
    text = plain_text(tmp_path / "report.html")
    assert "ratings are not available" in text
    assert "Not available: there is no pair of another group" in text


def test_given_autoencoder_and_features_cross_fitting_and_a_judge(audit: Audit, reward: str, tmp_path: Path) -> None:
    def judged(seen: Seen) -> dict[str, Any]:
        first = seen.user.partition("answer A")[2].partition("answer B")[0]
        return {"better": "A" if "help with" in first else "B", "confidence": 90}

    files = [f"--pairs={g}={f}" for g, f in audit.files.items()]
    with Server(make=judged) as server:
        code, _, err = call(
            "audit", "report", "--model", reward, "--out", tmp_path, *files, *SETTINGS, "--base", audit.model,
            "--sae", audit.out / "sae" / "sae", "--features", audit.out / "features" / "features.json", "--show=3",
            "--set=reward.epochs=1", "--crossfit=2", "--voting=2", "--judge.llm=m", "--judge.base-url", server.url,
            "--judge.pairs=4",
        )  # fmt: skip
        asked = server.stats.requests
    assert code == 0, err
    assert asked == 8  # four pairs, in both orders
    shares = json.loads((tmp_path / "scores" / "summary.json").read_text())["shares"]["safety"]
    assert list(shares) == ["margin_crossfit", "latents", "probe", "bag_of_words"]
    findings = json.loads((tmp_path / "findings" / "findings.json").read_text(encoding="utf-8"))
    assert findings["judge"] == "margin_crossfit", "who paid for a judge that saw no label gets its word"
    assert "Wrong, at most" in plain_text(tmp_path / "report.html")
    trained = [json.loads((tmp_path / "crossfit" / f"{draw}-0" / "manifest.json").read_text())["config"]["training"]
               for draw in (0, 1)]  # fmt: skip
    assert trained[0]["seed"] != trained[1]["seed"]
    assert not (tmp_path / "sae").exists()
    assert re.search(r"Cross-fitted margin: about .*4 trainings|Cross-fitted margin: about ", err)
    assert err.index("Cross-fitted margin: about") < err.index("▸ crossfit-0"), "the price comes first"
    lines = {r["id"]: r for r in rows_of(tmp_path / "scores" / "scores.jsonl")}
    assert all(r["margin_crossfit"] is not None and r["voting"] is not None for r in lines.values())
    told = json.loads((tmp_path / "evidence" / "suspicious.json").read_text(encoding="utf-8"))["pairs"]
    assert len(told) == 3
    assert all("LLM judge" in {f["name"] for f in p["facts"]} for p in told)
    assert all(p["chosen"]["tokens"] for p in told)
    assert "given" in plain_text(tmp_path / "report.html")


def test_what_does_not_fit_is_said_before_anything_is_trained(audit: Audit, reward: str, tmp_path: Path) -> None:
    """With a base as model: a reward model would be trained first, and whatever comes after it would cost that."""
    files = [f"--pairs={g}={f}" for g, f in audit.files.items()]
    base = [*files, "--model", audit.model]
    common = ("audit", "report", "--out", tmp_path / "out", *SETTINGS)
    other = tiny_sae(tmp_path / "other", d_in=8)
    deep = tiny_sae(tmp_path / "deep", hookpoint="layers.7")
    small = tiny_sae(tmp_path / "small", d_sae=2)
    words_of = write(tmp_path / "words.yaml", [json.dumps(WORDS | {"against": ["code"]})])
    features = ("--features", audit.out / "features" / "features.json")
    for words, wrong in (
        ("no scoring method 'best'", [*base, "--by=best"]),
        ("cannot rank by judge", [*base, "--by=judge"]),
        ("--crossfit 5", [*base, "--by=voting"]),
        ("nowhere", [*base, "--sae", tmp_path / "nowhere"]),
        ("width 8", [*base, "--sae", other]),
        ("out of range", [*base, "--sae", deep]),
        ("out of range", [*base, "--set=sae.hookpoint=layers.9"]),
        ("nowhere", [*base, "--sae", audit.out / "sae" / "sae", "--features", tmp_path / "nowhere.json"]),
        ("the autoencoder has 2", [*base, "--sae", small, *features]),
        ("nowhere", [*files, "--model", reward, "--base", tmp_path / "nowhere", "--crossfit=2"]),
        ("nowhere", [*base, "--set=data.general_text=./nowhere.txt"]),
        ("file not found", [*base, "--experiment", tmp_path]),
        ("the experiment edits 'chat'", [*base, "--experiment", experimented(tmp_path / "grid", "chat")]),
        ("'code'", [*base, "--group=safety", "--dimension", words_of]),
        ("is about group 'safety'", [*base, "--group=chat", "--dimension", words_of]),
        ("--base", [*files, "--model", reward, "--crossfit=3"]),
        ("--sae", [*files, "--model", reward, "--features", audit.out / "features" / "features.json"]),
        ("harmless", [*files, "--model", reward, "--group=harmless"]),
        ("crossfit: with one fold", [*base, "--crossfit=1"]),
        ("voting: votes are of cross-fitted models", [*base, "--voting=3"]),
        ("seed: input should be greater than or equal to 0", [*base, "--seed=-1"]),
        ("remove", [*files, "--model", reward, "--remove=1.5"]),
        ("--pairs", ["--model", reward]),
        ("judge.llm", [*files, "--model", reward, "--judge.pairs=7"]),
    ):
        assert words in the_error(*call(*common, *wrong)), wrong
    assert not [made for made in ("reward", "sae", "scan") if (tmp_path / "out" / made).exists()]


def tiny_sae(folder: Path, **config: Any) -> Path:
    """An untrained autoencoder of the model here, or of another."""
    found = {"d_in": 32, "d_sae": 16, "k": 2, "hookpoint": "layers.2"} | config
    SparseAutoencoder.untrained(SAEConfig(**found), 0).save_pretrained(folder)
    return folder


def experimented(folder: Path, target: str) -> Path:
    """A folder with the result of an experiment: SAFER's flips of 5 % cost chat 20 points and safety 12."""
    lost = {g: {"value": v, "low": v - 0.02, "high": v + 0.02, "n": 9} for g, v in (("chat", 0.2), ("safety", 0.12))}
    rows = [{"method": "none", "rate": 0.0}, {"method": "safer", "rate": 0.05, "lost": lost}]
    folder.mkdir()
    write(folder / "result.json", [{"recipe": {"recipe": "audit-experiment", "target": target},
                                    "poison": {"summary": rows}}])  # fmt: skip
    return folder


def test_the_model_reads_every_text_once(audit: Audit, reward: str, tmp_path: Path) -> None:
    """Rewards, latents and raw activations come from one pass; only what the page shows token by token is read again,
    and not even that where the scan kept it."""
    rows = 0

    def count(module: Any, args: Any) -> None:
        nonlocal rows
        rows += len(args[0]) if isinstance(module, nn.Embedding) and module.num_embeddings > 256 else 0  # words

    files = [f"--pairs={g}={f}" for g, f in audit.files.items()]
    given = ["--model", reward, "--sae", audit.out / "sae" / "sae"]
    read = {}
    for keep in ("always", "never"):
        rows = 0
        hook = register_module_forward_pre_hook(count)
        try:
            code, _, err = call("audit", "report", *given, *files, *SETTINGS, f"--set=scan.keep_tokens={keep}",
                                "--show", 5, "--out", tmp_path / keep)  # fmt: skip
        finally:
            hook.remove()
        assert code == 0, err
        read[keep] = rows
    texts = 2 * (76 + 48)
    assert read["always"] == texts
    assert texts < read["never"] <= texts + 2 * 5 + 6 * CONTEXTS


def test_another_dimension_and_some_of_the_pairs(audit: Audit, reward: str, tmp_path: Path) -> None:
    """Features of chats, told from safety pairs: rating and page are about what the file says."""
    about = write(tmp_path / "words.yaml", [json.dumps(WORDS | {"group": "chat", "against": ["safety"]})])
    files = [f"--pairs={g}={f}" for g, f in audit.files.items()]
    code, out, err = call("audit", "report", "--model", reward, "--out", tmp_path / "out", *files, *SETTINGS, "--json",
                          "--sae", audit.out / "sae" / "sae", "--dimension", about, "--set=data.max_pairs=40",
                          "--experiment", experimented(tmp_path / "grid", "chat"))  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result["options"]["group"] == "chat"
    assert result["options"]["dimension"]["against"] == ["safety"]
    assert (result["overlap"]["group"], result["overlap"]["other"]) == ("chat", "safety")
    assert result["reliance"]["dimension"] == "verbosity"
    assert {f["rating"] for f in result["features"]} <= {2, 3, 4, 5}
    assert all("chat" in f["why"] for f in result["features"])
    text = plain_text(tmp_path / "out" / "report.html")
    assert "verbosity: how strongly the feature has to do with many words." in text
    assert "Not about verbosity" in text
    assert "Only 80 of 124 usable rows are audited" in text
    assert "safety features" not in text.lower()
    assert not re.search("trained on these labels", text)
    told = {c["name"]: (c["value"]["value"], c["holds"]) for c in result["failure_signs"] if "flips" in c["name"]}
    assert told == {"chat lost at 5 % flips": (0.2, True), "chat lost at 0.5 % flips": (None, None),
                    "safety lost at 5 % flips": (0.12, False), "safety lost at 0.5 % flips": (None, None)}  # fmt: skip
    assert "If these pairs were among those it was trained on" in text


def test_a_judge_that_may_have_learned_the_labels_is_no_upper_estimate():
    def line(**shares):
        found = Found.__new__(Found)
        found.group, found.shares = "safety", {"safety": shares}
        return _share_line(found)

    low, mid, high = (Estimate(value=v, low=v - 0.01, high=v + 0.03, n=300) for v in (0.012, 0.08, 0.17))
    none = Estimate.not_available("few")
    assert "Up to 17.0" in line(bag_of_words=high, latents=none)
    assert "upper estimate" in line(margin_crossfit=mid, latents=low, bag_of_words=none)
    assert "Up to 1.2" in line(margin_crossfit=mid, latents=high, bag_of_words=low), "the lowest bound is the sharpest"
    assert "Up to 17.0" in line(latents=mid, bag_of_words=high), "latents may have learned what is wrong"
    told = line(latents=mid, probe=low, bag_of_words=none)
    assert "Up to" not in told
    assert "About 8.0" in told
    assert "too low as far as the reward model has learned wrong labels" in told
    assert "could not be estimated: few" in line(latents=none, probe=none, bag_of_words=none)


def test_the_command_says_at_most_only_where_a_judge_saw_no_label():
    share = {"value": 0.1, "low": 0.08, "high": 0.12, "n": 300}
    shares = dict.fromkeys(("margin_crossfit", "latents", "probe", "bag_of_words"), share)
    result = {"pairs": {}, "wrong_share": {"safety": shares}, "faults": {}, "failure_signs": [], "files": {},
              "edits": {"edited": 1}}  # fmt: skip
    bounds = {name for name, _ in result_rows(result) if "at most" in name}
    assert bounds == {f"wrong labels in safety, at most ({m})" for m in ("margin_crossfit", "bag_of_words")}
    assert "wrong labels in safety, if not learned (latents)" in dict(result_rows(result))


def test_the_pairs_of_the_recipe_count_where_none_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(_: Any, options: Any, *__: Any) -> None:
        asked.append(options.pairs)
        raise ConfigError("enough")

    monkeypatch.setattr("seamark.pipelines.audit_report.run_audit", noted)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"recipe": "safer", "data": {"pairs": {"safety": "a.jsonl", "chat": ["b.jsonl"]}}}))
    common = ("audit", "report", "--model", "m", "--out", tmp_path / "out", "--config", recipe)
    for more in ((), ("--pairs=safety=c.jsonl",)):
        assert "enough" in the_error(*call(*common, *more))
    assert asked == [{"safety": ["a.jsonl"], "chat": ["b.jsonl"]}, {"safety": ["c.jsonl"]}]
