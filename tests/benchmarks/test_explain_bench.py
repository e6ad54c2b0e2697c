"""From a suite to explained features: stages go on where they stopped, and claims follow from their rows."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import explain, harness, markdown, tables
from benchmarks.explaining import __main__ as process
from benchmarks.explaining import code, comparing, scanning, stages, texts, yields
from benchmarks.explaining import tables as made_tables
from benchmarks.explaining.job import TRIAL, Job, Settings
from benchmarks.explaining.stages import STAGES, Bench
from benchmarks.harness import BenchmarkError
from seamark.explain.records import Explanation, Simulation
from seamark.explain.taxonomy import Tag
from seamark.features.reading import Scan
from seamark.stats import Estimate
from seamark.text.rendering import Rendered
from tiny import tiny_folder

ONE = {"stage_s": 1.0, "peak_rss_mb": 100.0, "others_cpu": 0.0}


class Programs:
    """Stands for the processes that are started: which stages ran, and which of them fail."""

    def __init__(self, rows=None, broken=()):
        self.ran, self.rows, self.broken = [], rows or {}, set(broken)

    def __call__(self, arguments, timeout, **_):
        name = "server" if arguments[1] == "benchmarks.llm_throughput" else Job.read(arguments[2]).stage
        self.ran.append(name)
        if name in self.broken:
            raise BenchmarkError(f"{name} broke")
        return ONE | {"number": len(self.ran)} | self.rows.get(name, {})


@pytest.fixture(scope="module")
def codes():
    """{module: its code}, as it was when the tests began."""
    return {stage.module: code.code_of(stage.module) for stage in STAGES.values()}


@pytest.fixture
def programs(monkeypatch, codes):
    found = Programs()
    monkeypatch.setattr(harness, "run_python", found)
    monkeypatch.setattr(stages, "code_of", codes.__getitem__)
    return found


def bench(folder, settings=TRIAL, runs=2, data=None):
    return Bench(folder, settings, data, lambda _: None, runs)


def ran(programs, folder, **options):
    """Which stages a benchmark runs."""
    programs.ran.clear()
    made = bench(folder, **options)
    made.run(list(STAGES))
    return programs.ran[:], made


# -- stages


def test_finished_stages_are_not_run_again(programs, tmp_path):
    first, made = ran(programs, tmp_path)
    assert first == ["suite", "concepts", "scan", "yield", "compare", "time", "time", "server", "server"]
    again, kept = ran(programs, tmp_path)
    assert again == []
    assert kept.rows == made.rows
    assert [r["number"] for r in kept.rows["time"]] == [6, 7]
    assert ran(programs, tmp_path, runs=3)[0] == ["time", "server"]
    assert len(ran(programs, tmp_path, runs=1)[1].rows["time"]) == 1


def test_other_settings_run_again_what_depends_on_them(programs, tmp_path):
    ran(programs, tmp_path)
    assert ran(programs, tmp_path, settings=replace(TRIAL, features=5))[0] == ["yield"]
    ran(programs, tmp_path)
    assert ran(programs, tmp_path, settings=replace(TRIAL, scan_texts=5))[0] == [
        "scan", "yield", "compare", "time", "time",
    ]  # fmt: skip


def test_other_code_runs_again_what_depends_on_it(programs, tmp_path, monkeypatch):
    ran(programs, tmp_path)
    before = stages.code_of

    def edited(module):
        found = before(module)
        return {f: "other" if f.endswith("explain/lexicon.py") else d for f, d in found.items()}

    monkeypatch.setattr(stages, "code_of", edited)
    assert ran(programs, tmp_path)[0] == ["yield", "compare", "time", "time"]


def test_a_stage_that_fails_takes_along_what_needs_it_and_nothing_else(programs, tmp_path):
    programs.broken = {"scan"}
    first, made = ran(programs, tmp_path)
    assert first == ["suite", "concepts", "scan", "server", "server"]
    assert made.why == {
        "scan": "scan broke", "yield": "scan: scan broke", "compare": "scan: scan broke", "time": "scan: scan broke",
    }  # fmt: skip
    programs.broken = set()
    assert ran(programs, tmp_path)[0] == ["scan", "yield", "compare", "time", "time"]


def test_what_a_broken_off_stage_has_made_stays_for_it_alone(programs, tmp_path):
    programs.broken = {"yield"}
    ran(programs, tmp_path)
    part = tmp_path / "yield" / "some-sae.json"
    part.write_text("{}")
    ran(programs, tmp_path)
    assert part.exists()
    ran(programs, tmp_path, settings=replace(TRIAL, features=5))
    assert not part.exists()


def test_a_timed_stage_keeps_its_rounds(programs, tmp_path, monkeypatch):
    calls = []

    def twice(arguments, timeout):
        row = programs(arguments, timeout)
        calls.append(programs.ran[-1])
        if calls.count("time") == 2:
            raise BenchmarkError("killed")
        return row

    monkeypatch.setattr(harness, "run_python", twice)
    made = bench(tmp_path, runs=3)
    made.run(["time"])
    assert made.why["time"] == "killed"
    assert ran(programs, tmp_path, runs=3)[0].count("time") == 2


def test_only_the_stages_asked_for_and_what_they_need(programs, tmp_path):
    made = bench(tmp_path)
    made.run(["yield"])
    assert programs.ran == ["suite", "scan", "yield"]
    assert {n: made.why[n] for n in ("concepts", "server")} == {"concepts": "not run", "server": "not run"}
    ran(programs, tmp_path)
    made = bench(tmp_path)
    made.run(["suite"])
    assert set(made.rows) == set(STAGES)


def test_code_is_what_a_stage_imports_and_the_data_beside_it(codes):
    trained, explained = codes[STAGES["suite"].module], codes[STAGES["yield"].module]
    for file in ("src/seamark/sae/step.py", "src/seamark/features/blocks.py", "src/seamark/text/data/pairs.jsonl",
                 "benchmarks/explaining/texts.py"):  # fmt: skip
        assert file in trained, file
    for file in ("src/seamark/explain/lexicon.py", "src/seamark/explain/taxonomy.yaml",
                 "src/seamark/features/context_choice.py"):  # fmt: skip
        assert file in explained, file
        assert file not in trained, file
    assert "src/seamark/features/training.py" not in explained
    assert "benchmarks/harness.py" not in trained
    assert "src/seamark/explain/transport.py" in codes[STAGES["server"].module]
    assert all(len(d) == 64 for d in trained.values())


# -- texts


def test_demo_texts_are_parted_by_pair():
    job = Job("suite", "nowhere", TRIAL)
    train, held_out = texts.training_texts(job)
    assert texts.source(None) == "demo texts"
    assert not {i.partition(":")[0] for i, _ in train} & {i.partition(":")[0] for i, _ in held_out}
    assert 0.01 < len(held_out) / len(train + held_out) < 0.1
    assert texts.domain_texts(job) == texts.domain_texts(job)
    assert sorted(texts.domain_texts(job)) == sorted(train + held_out)


def test_real_texts_are_drawn_by_hash_and_labels_left_alone(tmp_path):
    for name, n in ((texts.DOMAIN, 40), (texts.PLAIN, 60)):
        with gzip.open(tmp_path / name, "wt") as f:
            f.writelines(json.dumps({"text": f"{name} says {i}.", "label": i % 2}) + "\n" for i in range(n))
    job = Job("suite", "nowhere", replace(TRIAL, plain_texts=25, held_out=0.3), str(tmp_path))
    assert texts.source(str(tmp_path)) == "domain_texts and plain_text"
    train, held_out = texts.training_texts(job)
    both = train + held_out
    assert len(both) == 65
    assert sum(text.startswith(texts.PLAIN) for _, text in both) == 25
    assert held_out
    assert len(texts.domain_texts(job)) == 40
    fewer = texts.training_texts(replace(job, settings=replace(job.settings, plain_texts=10)))
    assert {i for part in fewer for i, _ in part} < {i for i, _ in both}
    (tmp_path / texts.PLAIN).unlink()
    assert texts.source(str(tmp_path)) == "demo texts"


def test_as_many_texts_as_may_be_kept():
    class Words:
        def render_text(self, text: str, text_id: str) -> list[str]:
            return text.split()

    renderer: Rendered = Words()
    some = [(str(i), "one two three") for i in range(5)]
    assert scanning.fitting(some, renderer, 15) == 5
    assert scanning.fitting(some, renderer, 14) == 4
    assert scanning.fitting(some, renderer, 2) == 0


# -- what follows from the rows


def an(value, low=None, high=None, n=9, reason=""):
    return Estimate(value=value, low=low, high=high, n=n, reason=reason).model_dump()


def suite_row(i_cdf, nulls, halves=((4.0, 1.0),) * 6):
    saes = [
        {"sae": f"s{i}", "rank": i + 1, "rank_i_cdf": i + 1, "hookpoint": f"layers.{2 + 2 * (i % 2)}.mlp", "k": 8 << i,
         "L0": 8.0 * (i + 1), "FVU": None if i == 5 else 0.5 - i / 20, "i_cdf": an(v, v - 0.01, v + 0.01),
         "null": an(n), "difference": an(v - n, v - n - 0.01, v - n + 0.01), "l0_t": {"0.5": half}}
        for i, (v, n, half) in enumerate(zip(i_cdf, nulls, halves, strict=True))
    ]  # fmt: skip
    return {"pairs": {"demo": {"pairs": 204, "concepts": 17, "left_out": 0, "tau": an(0.7, 0.5, 0.9, 6),
                               "top_stays": an(0.6), "saes": saes}}}  # fmt: skip


def yield_row(counts):
    return {"saes": [
        {"sae": f"s{i}", "hookpoint": f"layers.{2 + 2 * (i % 2)}.mlp", "k": 8 << i, "with_q": 1000, "drawn": 100,
         "explained": 90, "tagged": 20, "scored": 80, "good": 60 - i, "yield": round(c / 10), "share": c / 1000,
         "low": 0.0, "high": 1.0, "count": float(c), "reason": ""}
        for i, c in enumerate(counts)
    ]}  # fmt: skip


USED = {"queries": 40, "tokens_in": 4000, "tokens_out": 200, "cost": None}
COMPARED = {
    "features": 200, "n_both": 150, "spearman": an(0.9, 0.85, 0.95, 150), "token_saving": an(0.6, 0.58, 0.62, 150),
    "usage": {"segment": USED, "token": {**USED, "tokens_in": 8000, "tokens_out": 2500}},
    "batching": {"batch": 8, "segment": USED, "token": USED, "segment_saving": 0.5, "token_saving": 0.3},
    "scores": [], "not_available": [{"level": "token", "reason": "… texts", "features": 3}], "explained": 180,
    "tagged": 40, "sae": "s1",
}  # fmt: skip
I_CDF, NULLS, COUNTS = [0.03, 0.05, 0.02, 0.08, 0.06, 0.01], [0.01] * 6, [10, 30, 20, 60, 40, 50]
ROWS = {
    "suite": [ONE | {"source": "demo texts", "texts": 3, "positions": 1000, "saes": [
        {"sae": "s0", "hookpoint": "layers.2.mlp", "k": 8, "L0": 8.0, "FVU": 0.51234567, "dead": 0.1}]}],
    "concepts": [ONE | suite_row(I_CDF, NULLS)],
    "scan": [ONE | {"source": "demo texts", "texts": 7, "texts_asked": 7, "positions": 210, "bytes": 2**29}],
    "yield": [ONE | yield_row(COUNTS)],
    "compare": [ONE | COMPARED],
    "time": [ONE | {"features_per_min": v, "seconds": 60.0} for v in (150.0, 210.0, 180.0)],
    "server": [{"share": v, "others_cpu": 0.0} for v in (0.93, 0.95, 0.91)],
}  # fmt: skip


def claimed(rows=ROWS, why=None):
    return {c.name: c for c in explain.claims(rows, why or {})}


def test_claims_of_the_issue_with_their_targets():
    found = claimed()
    assert list(found) == list(explain.TARGETS)
    saving = found["segment_token_saving"]
    assert (saving.value, saving.low, saving.high, saving.n, saving.holds) == (0.6, 0.58, 0.62, 150, True)
    assert found["segment_vs_token_spearman"].holds
    speed = found["features_explained_per_min_offline"]
    assert (speed.value, speed.low, speed.high, speed.n, speed.target) == (180, 150, 210, 3, ">= 20")
    assert (found["server_throughput_share"].value, found["server_throughput_share"].holds) == (0.93, True)
    rank = found["icdf_vs_yield_spearman"]
    assert rank.value == pytest.approx(spearmanr(I_CDF, COUNTS).statistic)
    assert rank.low < rank.value < rank.high
    assert (rank.n, rank.target, rank.holds) == (6, "", None)
    assert found["swapped_null_over_icdf"].value == pytest.approx(1.0)
    assert found["swapped_null_over_icdf"].low == pytest.approx(0.01 / 0.08)
    assert found["swapped_null_over_l0_half"].value == pytest.approx(0.25)
    assert found["ranking_kendall_tau"].value == 0.7
    for name in ("segment_token_saving_llm", "segment_vs_token_spearman_llm"):
        assert found[name].value is None
        assert found[name].holds is None
        assert "seamark simulate" in found[name].reason


def test_without_a_stage_its_claims_say_why():
    found = claimed({}, {"compare": "scan: no disk", "concepts": "not run", "time": "killed", "server": "no port"})
    assert {c.value for c in found.values()} == {None}
    assert found["segment_token_saving"].reason == "compare: scan: no disk"
    assert found["icdf_vs_yield_spearman"].reason == "concepts: not run"
    assert found["features_explained_per_min_offline"].reason == "time: killed"
    assert found["server_throughput_share"].reason == "server: no port"
    assert all(c.holds is None and c.n == 0 for c in found.values())
    rows = {k: v for k, v in ROWS.items() if k != "yield"}
    assert claimed(rows, {"yield": "broke"})["icdf_vs_yield_spearman"].reason == "yield: broke"
    nothing = {"spearman": an(None, reason="2 features have both scores"), "token_saving": an(None, reason="no tokens")}
    found = claimed(ROWS | {"compare": [COMPARED | nothing]})
    assert found["segment_vs_token_spearman"].reason == "2 features have both scores"
    assert found["segment_token_saving"].value is None


def test_a_correlation_that_does_not_exist_is_not_zero():
    found = claimed(ROWS | {"yield": [ONE | yield_row([0] * 6)]})["icdf_vs_yield_spearman"]
    assert found.value is None
    assert "all with the same one" in found.reason
    rows = ROWS | {"concepts": [ONE | suite_row([0.0] * 6, [0.0] * 6, [(0.0, 0.0)] * 6)]}
    assert claimed(rows)["swapped_null_over_icdf"].value is None
    assert claimed(rows)["swapped_null_over_l0_half"].value is None


def test_every_predictor_is_held_against_the_yield():
    found = made_tables.correlations(ROWS)
    assert [(r["predictor"], r["SAEs"]) for r in found] == [
        (p, over) for over in ("all", "layers.2.mlp", "layers.4.mlp") for p in made_tables.PREDICTORS
    ]
    by_name = {r["predictor"]: r for r in found if r["SAEs"] == "all"}
    difference = [a - b for a, b in zip(I_CDF, NULLS, strict=True)]
    assert by_name["I_CDF − null"]["yield count"]["median"] == pytest.approx(
        spearmanr(difference, COUNTS).statistic, rel=1e-3
    )
    assert by_name["L0"]["yield share"]["median"] == pytest.approx(spearmanr(range(6), COUNTS).statistic, rel=1e-3)
    assert by_name["FVU"]["yield count"]["median"] == pytest.approx(
        spearmanr(range(5, 0, -1), COUNTS[:5]).statistic, rel=1e-3
    )
    assert by_name["swapped null"]["yield count"] is None
    assert by_name["L0"]["good, tagged or not"]["median"] == -1.0
    assert {r["n"] for r in found if r["SAEs"] == "layers.2.mlp"} == {3}


def test_tables_are_shown_and_saved(tmp_path, capsys):
    rows = made_tables.table(ROWS)
    assert list(dict.fromkeys(r["table"] for r in rows)) == [
        "suite", "concept metrics, demo pairs", "latents that tell apart a share t of a concept's pairs, demo", "yield",
        "Spearman with the yield", "no score", "tokens that would be sent and received", "share of tokens saved",
        "with a language model", "time", "server",
    ]  # fmt: skip
    best = next(r for r in rows if r["table"] == "concept metrics, demo pairs")
    assert best["I_CDF"] == {"median": 0.03, "low": 0.02, "high": 0.04}
    assert best["swapped null"] == 0.01
    sent = [r for r in rows if r["table"] == "tokens that would be sent and received"]
    assert [(r["level"], r["calls of"], r["all"]) for r in sent] == [
        ("segment", "1 text a call", 4200), ("token", "1 text a call", 10500), ("segment", "8 texts a call", 4200),
        ("token", "8 texts a call", 4200),
    ]  # fmt: skip
    result = harness.Result("explain", "it", list(claimed().values()), rows)
    path = harness.save(result, 0.1, tmp_path)
    tables.show(result)
    page = markdown.section(json.loads(path.read_text()))
    assert "| 8 texts a call instead of 1, segments | 0.5 |" in page
    assert "segment_token_saving" in capsys.readouterr().out
    assert made_tables.table({}) == []


def explanation(*tags, text="Fires on a word."):
    about = {"rating_reason": "none given"} if text else {"reason": "no word", "rating_reason": ""}
    return Explanation(sae="s", latent=1, text=text, language="en", method="lexical",
                       tags=tuple(Tag(t) for t in tags), **about)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "value", "holds"),
    [
        (explanation("violence"), 0.2, {"drawn", "explained", "tagged", "scored", "good", "yield"}),
        (explanation("violence"), 0.19, {"drawn", "explained", "tagged", "scored"}),
        (explanation("violence"), None, {"drawn", "explained", "tagged"}),
        (explanation(), 0.9, {"drawn", "explained", "scored", "good"}),
        (explanation(text=None), None, {"drawn"}),
    ],
)
def test_a_feature_counts_with_a_domain_and_a_good_score(found, value, holds):
    row = yields._of_feature(found, value, 0.2)
    assert tuple(row) == yields.COUNTS
    assert {name for name, true in row.items() if true} == holds


@pytest.mark.parametrize(("n", "block"), [(9, 256), (30, 256), (30, 4)])
def test_the_yield_of_a_sample_stands_for_all_features_with_q(monkeypatch, n, block):
    class Scanned:
        path = "scan"

        def __init__(self):
            self.manifest = {"sae_configs": {"s": {"hookpoint": "layers.2.mlp", "k": 4}}}

        def sae_id(self, sae_id):
            return sae_id

        def q(self, sae_id):
            return np.asarray([1.0, np.nan] * 15)

    def explained(scan, sae_id, latents):
        assert 0 < len(latents) <= block
        return [(explanation("terror") if i % 3 == 0 else explanation(), 0.5) for i in latents]

    monkeypatch.setattr(yields, "_explained", explained)
    monkeypatch.setattr(yields, "BLOCK", block)
    row = yields.of_sae(Scanned(), "s", n, 0.2)
    assert (row["with_q"], row["drawn"]) == (15, min(n, 15))
    assert row["share"] == pytest.approx(row["yield"] / row["drawn"])
    assert row["count"] == pytest.approx(15 * row["share"])
    if n == 30:
        assert (row["yield"], row["low"], row["high"]) == (5, None, None)
    else:
        assert row["low"] < row["share"] < row["high"]
    monkeypatch.setattr(Scanned, "q", lambda *_: np.full(30, np.nan))
    assert yields.of_sae(Scanned(), "s", n, 0.2)["share"] is None


def simulation(latent, value, reason="", level="segment"):
    some = Estimate(value=value, reason=reason)
    return Simulation(sae="s", latent=latent, level=level, method="lexical", correlation=some, accuracy=some)


def test_scores_are_told_by_quartiles_and_reasons():
    some = [simulation(i, v) for i, v in enumerate([0.0, 0.1, 0.2, 0.3, 0.4])]
    none = [simulation(i, None, f"{i} texts of 5") for i in (7, 8)] + [simulation(9, None, "the truth is constant")]
    found = comparing.distribution("segment", some + none, 0.2)
    assert (found["features"], found["scored"], found["median"], found["quartile 1"]) == (8, 5, 0.2, 0.1)
    assert found["share of 0.2 or more"] == pytest.approx(3 / 5)
    assert comparing.why_not(some + none) == [("… texts of …", 2), ("the truth is constant", 1)]
    assert comparing.distribution("segment", none, 0.2)["share of 0.2 or more"] is None


# -- the program


def test_a_run_says_what_was_measured(programs, tmp_path, monkeypatch):
    monkeypatch.delenv("SEAMARK_DATA", raising=False)
    programs.rows = {name: rows[0] for name, rows in ROWS.items()}
    result = explain.run(2, settings=TRIAL, folder=tmp_path)
    assert "1,000 positions of demo texts" in result.about
    assert "demo: 204 of 17 concepts" in result.about
    assert result.settings["stages"]["suite"] == {"stage_s": 1.0, "peak_rss_mb": 100.0}
    assert str(tmp_path) not in json.dumps(result.to_json(0.0))
    with pytest.raises(ValueError, match="no stage nonsense"):
        explain.run(1, stage="nonsense", folder=tmp_path)
    programs.ran.clear()
    explain.run(1, stage="suite", trial=True, features=3, folder=tmp_path)
    assert programs.ran == ["suite"]
    assert Job.read(tmp_path / "trial" / "suite" / "job.json").settings == TRIAL.with_features(3)
    programs.broken = set(STAGES)
    empty = explain.run(1, settings=replace(TRIAL, positions=7), stage="suite", folder=tmp_path / "other")
    assert {c.value for c in empty.claims} == {None}
    assert empty.rows == []


def test_the_suite_is_what_the_issue_asks_for():
    usual = Settings()
    assert len(usual.ks) >= 6
    assert len(usual.hookpoints) >= 2
    assert all(h.endswith(".mlp") for h in usual.hookpoints)
    assert usual.compare_features >= 200
    assert (usual.compare_hookpoint in usual.hookpoints, usual.compare_k in usual.ks) == (True, True)


def test_all_stages_on_a_tiny_model(tmp_path, monkeypatch, codes):
    monkeypatch.setattr(stages, "code_of", codes.__getitem__)
    model = tiny_folder(tmp_path / "model", "llama", "base")
    settings = Settings(model=model, hookpoints=("layers.1.mlp", "layers.2.mlp"), ks=(2, 4), d_sae=48, positions=4000,
                        batch=256, max_length=48, scan_texts=300, features=5, compare_hookpoint="layers.2.mlp",
                        compare_k=2, compare_features=48, draws=20)  # fmt: skip
    monkeypatch.delenv("SEAMARK_DATA", raising=False)
    asked = []

    def here(arguments, timeout):
        if arguments[1] == "benchmarks.llm_throughput":
            return ROWS["server"][0]
        asked.append(Job.read(arguments[2]).stage)
        return json.loads(json.dumps(process.main(arguments[2]), allow_nan=False)) | {"others_cpu": 0.0}

    monkeypatch.setattr(harness, "run_python", here)
    folder = tmp_path / "scratch"
    result = explain.run(1, settings=settings, folder=folder)
    assert result.settings["missing"] == {}
    assert asked == ["suite", "concepts", "scan", "yield", "compare", "time"]
    found = {c.name: c for c in result.claims}
    saving = found["segment_token_saving"]
    assert saving.value is not None, (saving.reason, [r for r in result.rows if r["table"] == "no score"])
    assert 0 < saving.value < 1
    assert found["features_explained_per_min_offline"].value > 0
    trained = [r for r in result.rows if r["table"] == "suite"]
    assert [(r["hookpoint"], r["k"]) for r in trained] == [(h, k) for h in settings.hookpoints for k in settings.ks]
    assert all(0 < r["L0"] <= r["k"] and r["FVU"] > 0 for r in trained)
    assert "<svg" in (folder / "concepts" / "demo" / "concepts.svg").read_text()
    scanned = Scan.open(folder / "scan" / "scan")
    assert scanned.texts.num_rows == 300
    assert scanned.manifest["choices"]["keep_tokens"] is True
    yields = [r for r in result.rows if r["table"] == "yield"]
    assert len(yields) == 4
    for row in yields:
        assert row["tagged and good"] <= min(row["good"], row["tagged"])
        assert row["drawn"] == min(5, row["with_q"])
        assert row["count"] == round(row["with_q"] * row["tagged and good"] / max(row["drawn"], 1))
    assert harness.save(result, 0.0, tmp_path).exists()
    kept = json.loads((folder / "yield" / "done.json").read_text())
    assert explain.run(1, settings=settings, folder=folder).to_json(0.0)["claims"] == result.to_json(0.0)["claims"]
    assert len(asked) == 6
    trained_once = json.loads((folder / "suite" / "done.json").read_text())["rows"][0]
    (folder / "suite" / "done.json").unlink()  # as if it was killed while it measured: nothing is trained again
    weights = {p: p.stat().st_mtime_ns for p in (folder / "suite").rglob("*.safetensors")}
    explain.run(1, settings=settings, stage="suite", folder=folder)
    assert json.loads((folder / "suite" / "done.json").read_text())["rows"][0]["saes"] == trained_once["saes"]
    assert weights == {p: p.stat().st_mtime_ns for p in (folder / "suite").rglob("*.safetensors")}
    assert asked[6:] == ["suite"]
    (folder / "yield" / "done.json").unlink()  # as if it was killed at the end: what each SAE gave is still there
    monkeypatch.setattr("benchmarks.explaining.yields.of_sae", lambda *_: pytest.fail("explained again"))
    explain.run(1, settings=settings, folder=folder)
    again = json.loads((folder / "yield" / "done.json").read_text())
    assert again["rows"][0]["saes"] == kept["rows"][0]["saes"]
