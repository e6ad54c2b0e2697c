"""`make bench-scan`: the ways come to the same scores, by brute force too; claims from rows made by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import __main__ as program
from benchmarks import harness, scan
from benchmarks.harness import BenchmarkError, Result
from benchmarks.scans import __main__ as process
from benchmarks.scans import growth, job, memory, ours, parts, prepare, reference, tidy
from benchmarks.scans.job import Answer, Comparison, Doubt, Job, Setup, compare
from seamark.features.scan_texts import ScanTexts
from seamark.model.batching import collate
from seamark.model.reading import read
from seamark.sae import SparseAutoencoder

TINY = Setup("tiny", "layers.2", 256, 8, 9, max_length=200, blocks=4, width=32, inner=64, heads=4, vocabulary=600)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared set-up in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SEAMARK_DATA", raising=False)
        work = Job("tidy", TINY, str(tmp_path_factory.mktemp("scan") / "tiny"))
        about = prepare.measure(work)
    return work, job.load(work), about


@pytest.fixture(scope="module")
def answers(made):
    work, loaded, _ = made
    return {"reference": reference.run(loaded, work)[0], "tidy": tidy.run(loaded, work)[0]}


def brute_force(loaded):
    """(z [d_sae] summed over scoring positions, largest z, number of positions) of each text, read alone."""
    texts, at = job.rendered(loaded, TINY)
    sums, maxima = [], []
    for text, positions in zip(texts, at, strict=True):
        batch = collate([text], int(loaded.model.config.pad_token_id))
        h = read(loaded.model, batch, ["layers.2"]).activations["layers.2"][0][positions.astype(np.int64)]
        z = loaded.sae.encode(h).positive().dense().double().numpy()
        sums.append(z.sum(0))
        maxima.append(z.max(0) if len(z) else np.zeros(TINY.d_sae))
    return np.stack(sums), np.stack(maxima), np.asarray([len(p) for p in at])


@pytest.mark.parametrize("way", ["reference", "tidy"])
def test_the_other_ways_compute_what_the_paper_says(made, answers, way):
    answer, (sums, maxima, counts) = answers[way], brute_force(made[1])
    plus, minus = sums[0::2].sum(0), sums[1::2].sum(0)
    expected = (plus - minus) / (plus + minus + (plus + minus).mean())
    np.testing.assert_allclose(answer.scores, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.05
    order = np.argsort(-np.abs(expected), kind="stable")
    assert answer.explained.tolist() == [i for i in order if expected[i] != 0][:256]
    assert answer.features.tolist() == answer.explained.tolist()[:32]
    np.testing.assert_allclose(answer.shown, maxima.max(0)[answer.explained], rtol=1e-4, atol=1e-5)
    g = (sums[:, answer.features] @ np.sign(expected[answer.features])) / counts
    np.testing.assert_allclose(answer.pair_scores, g[0::2] - g[1::2], rtol=1e-4, atol=1e-4)


def test_the_scan_does_the_same_job(made, answers):
    work, loaded, _ = made
    mine, seconds = ours.run(loaded, replace(work, way="seamark"))
    doubt = Doubt.load(work.place / "doubt.json")
    for other in answers.values():
        found = compare(mine, other, doubt)
        assert (found.reason, found.ties) == ("", 0)
        assert found.difference < 1e-5
    assert set(seconds) == {"scan_s", "reading_s"}


def test_tidy_contexts_hold_the_activation_of_every_token_read(made):
    _, loaded, _ = made
    texts, scoring = job.rendered(loaded, TINY)
    places = [tidy.places_of(t, at) for t, at in zip(texts, scoring, strict=True)]
    found = tidy.Found(len(texts), TINY.d_sae)
    for row, text in enumerate(texts):
        h = read(loaded.model, collate([text], 2), ["layers.2"]).activations["layers.2"][0][places[row].at]
        found.add([row], [places[row]], tidy.DenseSAE(loaded.sae), h)
    latent = int(found.sums_TF.sum(0).argmax())
    maxima = brute_force(loaded)[1][:, latent]
    contexts = found.contexts(latent, texts, places)
    assert [value for value, _ in contexts] == pytest.approx(sorted(maxima[maxima > 0], reverse=True)[:10], rel=1e-4)
    for value, tokens in contexts:
        assert max(z for _, z in tokens) >= value - 1e-6
    strongest = int(maxima.argmax())
    assert (
        "".join(t for t, _ in contexts[0][1]).split()
        == "".join(texts[strongest].text[a:b] for a, b in texts[strongest].offsets[places[strongest].at]).split()
    )
    assert places[0].scored.sum() == len(scoring[0]) < len(places[0].at)


def test_the_reference_reads_every_text_three_times_padded_and_whole(made, monkeypatch):
    work, loaded, _ = made
    shapes, heads = [], []
    original = loaded.model.hf.forward

    def watching(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        output = original(*args, **kwargs)
        heads.append(output.logits.shape[0])
        assert len(output.hidden_states) == TINY.blocks + 1
        return output

    monkeypatch.setattr(loaded.model.hf, "forward", watching)
    reference.run(loaded, work)
    assert {width for _, width in shapes} == {TINY.max_length}
    assert sum(n for n, _ in shapes) == sum(heads) == 6 * TINY.n_pairs
    assert [n for n, _ in shapes] == [8, 1] * 2 + [8, 8, 2] + [8, 1] * 2
    shapes.clear()
    monkeypatch.setattr(tidy, "BATCH", 4)
    tidy.run(loaded, work)
    assert [n for n, _ in shapes] == [4, 4, 4, 4, 2]
    lengths = [len(t) for t in job.rendered(loaded, TINY)[0]]
    assert [width for _, width in shapes] == [max(lengths[i : i + 4]) for i in range(0, 18, 4)]


def test_words_around_an_activation(made):
    work, loaded, _ = made
    reader = reference.Reader(loaded, work)
    text = reader.texts[0]
    position = int(reader.positions[0][0])
    shown = reader.words_around(0, position)
    before, after = shown.split("<ACTIVATED>")
    assert before + after in text.text
    assert after.startswith(text.text[text.offsets[position, 0] : text.offsets[position, 1]])


# -- set-ups


def test_a_set_up_says_what_it_is_made_of(made):
    _, loaded, about = made
    assert (about["source"], about["pairs"], about["texts"]) == ("demo pairs", 9, 18)
    assert {p.group for p in loaded.pairs} == {"safety"}
    texts, at = job.rendered(loaded, TINY)
    assert about["tokens"] == sum(len(t) for t in texts)
    assert about["positions"] == sum(len(p) for p in at)
    h = torch.cat([h for _, h in prepare.activations(loaded, TINY)])
    torch.testing.assert_close(loaded.sae.b_dec.data, loaded.sae.preprocess(h.clone())[0].mean(0), atol=1e-4, rtol=1e-4)
    plain = SparseAutoencoder(loaded.sae.config)  # not centred: the same few latents fire nearly everywhere
    shares = [(sae.encode(h).positive().dense() > 0).float().mean(0) for sae in (loaded.sae, plain)]
    everywhere = [int((share > 0.5).sum()) for share in shares]
    assert everywhere[0] < everywhere[1], everywhere


def test_the_demo_s_pairs_come_again_under_other_names(monkeypatch):
    monkeypatch.delenv("SEAMARK_DATA", raising=False)
    few = prepare.take(10)[0]
    many, source = prepare.take(1100)
    assert source == "demo pairs"
    assert many.items[:10] == few.items
    assert len(set(many.ids)) == 1100
    assert len({(p.prompt, p.chosen) for p in many}) == 1100


def test_real_pairs_are_taken_where_there_are_some(tmp_path, monkeypatch):
    import gzip

    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea."} for i in range(5)]
    with gzip.open(tmp_path / prepare.FILE, "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setenv("SEAMARK_DATA", str(tmp_path))
    found, source = prepare.take(3)
    assert (len(found), source) == (3, "prefs_safety_pku")
    assert prepare.take(5)[0].items[:3] == found.items


def test_ties_at_the_last_latent_are_found(made):
    _, loaded, _ = made
    assert prepare.in_doubt(loaded, TINY) == (set(), set())
    twin = type(loaded.sae)(loaded.sae.config)
    twin.load_state_dict(loaded.sae.state_dict())
    with torch.no_grad():
        twin.W_enc[:, 1::2] = twin.W_enc[:, 0::2]  # every latent has its double; k is even, so a tie needs one of three
        twin.b_enc[:2] = 100.0
        twin.b_enc[1] = -100.0
    latents, rows = prepare.in_doubt(replace(loaded, sae=twin), TINY)
    assert rows == set(range(18))
    assert latents
    assert {i ^ 1 for i in latents} == latents


# -- comparison

SCORES = np.linspace(-0.9, 0.9, 400)


def answer(**changes):
    order = np.argsort(-np.abs(SCORES), kind="stable")[:256]
    fields = {"scores": SCORES, "explained": order, "shown": np.ones(256), "features": order[:32],
              "pair_scores": np.asarray([1.0, -2.0, np.nan, 0.5])}  # fmt: skip
    return Answer(**fields | changes)


NO_DOUBT = Doubt(frozenset(), frozenset())


def bumped(values, at, by):
    changed = values.copy()
    changed[at] += by
    return changed


def test_equal_answers_are_equal():
    assert compare(answer(), answer(), NO_DOUBT) == Comparison("", 0.0, 0)
    near = answer(scores=SCORES + 5e-5, pair_scores=answer().pair_scores + 1e-4)
    assert compare(answer(), near, NO_DOUBT).reason == ""
    assert compare(answer(), near, NO_DOUBT).difference == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": bumped(SCORES, 7, 2e-4)}, "scores differ by up to 0.0002"),
        ({"features": answer().features + 1}, "other features"),
        ({"shown": bumped(np.ones(256), 3, 0.01)}, "strongest context of latent"),
        ({"pair_scores": np.asarray([1.0, -2.001, np.nan, 0.5])}, "1 of 4 pair scores differ"),
        ({"pair_scores": np.asarray([1.0, np.nan, np.nan, 0.5])}, "1 of 4 pair scores differ"),
    ],
)
def test_unequal_answers_say_in_what(changes, says):
    assert says in compare(answer(), answer(**changes), NO_DOUBT).reason


def test_only_ties_may_differ():
    doubt = Doubt(frozenset({7}), frozenset({1}))
    off = answer(scores=bumped(SCORES, 7, 2e-3), pair_scores=np.asarray([1.0, -2.1, np.nan, 0.5]))
    assert compare(answer(), off, doubt) == Comparison("", 0.0, 2)
    assert compare(answer(), off, Doubt(frozenset({8}), frozenset({1}))).reason
    assert compare(answer(), off, Doubt(frozenset({7}), frozenset({0}))).reason


def test_answers_survive_their_file(tmp_path):
    answer().save(tmp_path / "a.safetensors")
    found = Answer.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found.pair_scores, answer().pair_scores)
    assert compare(answer(), found, NO_DOUBT).reason == ""


# -- parts, growth, memory


def test_parts_are_of_the_scan_s_batches_and_stop_at_the_hookpoint(made):
    work, loaded, _ = made
    again = job.load(work)
    batches = parts.planned(again, work)
    part = ScanTexts(again.pairs).render(0, again.model.renderer(TINY.max_length), ours.config(work))
    assert sum(len(b.rows) for b, _ in batches) == 18
    assert sum(n for _, n in batches) == sum(map(len, part.positions))
    assert sum(n for _, n in batches) > sum(len(p) for p in job.rendered(again, TINY)[1])  # tokens of answers too
    body = parts.truncated(again, 2)
    batch = batches[0][0]
    with torch.inference_mode():
        hidden = body(batch)
    expected = read(loaded.model, batch, ["layers.2"]).activations["layers.2"]
    norm = loaded.model.hf.model.norm
    with torch.inference_mode():
        torch.testing.assert_close(hidden, norm(expected), atol=1e-4, rtol=1e-4)
    found = parts.measure(job.load(work), work)
    assert found["parts_s"] == pytest.approx(found["forward_s"] + found["product_s"] + found["amax_s"])
    assert min(found[k] for k in ("forward_s", "product_s", "amax_s")) > 0
    assert found["tokens"] == sum(len(t) for t in job.rendered(loaded, TINY)[0])


def test_made_texts_are_the_same_every_time_and_not_kept(made):
    corpus = growth.corpus(made[1], 20_000)
    assert corpus.items == ()
    assert list(corpus)[5] == corpus[5] == growth.corpus(made[1], 40_000)[5]
    assert len({text for _, text in corpus}) == len(corpus)
    tokens = sum(len(made[1].model.renderer().render_text(text, i)) for i, text in corpus)
    assert tokens == pytest.approx(20_000, rel=0.15)
    with pytest.raises(IndexError):
        corpus[len(corpus)]


def test_growth_is_measured_on_the_scan(made):
    work, loaded, _ = made
    found = growth.measure(loaded, replace(work, way="growth", tokens=2000))
    assert found["tokens"] == pytest.approx(2000, rel=0.5)
    assert found["us_per_token"] == pytest.approx(1e6 * found["seconds"] / found["tokens"])
    assert found["peak_rss_mb"] > 50
    assert not (work.place / "scan-2000").exists()


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads the kernel's account of a process, on Linux")
def test_a_peak_is_told_above_what_was_held_before():
    before = np.ones(80 << 20, np.uint8)
    peak = memory.Peak()
    large = np.ones(48 << 20, np.uint8)
    del large
    above = peak.above_mb()
    if above is None:
        pytest.skip("this system does not let a process begin a new peak")
    assert 40 < above < 75
    assert len(before)


def test_one_run_prints_time_and_memory_and_leaves_its_answer(made, answers):
    work, _, _ = made
    found = process.main(str(work.write(work.place / "job.json")))
    assert found["tokens_per_s"] == pytest.approx(made[2]["tokens"] / found["seconds"])
    assert found["above_model_mb"] is None or found["above_model_mb"] >= 0
    assert compare(answers["reference"], Answer.load(work.answer), NO_DOUBT).reason == ""
    assert Job.read(work.place / "job.json") == work


# -- claims


def rows_of(setup, ours=2.0, reference=30.0, tidy=8.0, memory=100.0):
    def row(seconds, above):
        return {"seconds": seconds, "tokens_per_s": 1 / seconds, "above_model_mb": above, "others_cpu": 0.0}

    return {
        f"{setup} reference": [row(reference * f, 900.0) for f in (1.0, 1.1, 0.9)],
        f"{setup} tidy": [row(tidy, 500.0)] * 3,
        f"{setup} seamark": [row(ours, memory) | {"scan_s": s, "reading_s": 0.1} for s in (1.1, 1.2, 1.0)],
        f"{setup} parts": [{"parts_s": 1.0, "others_cpu": 0.0}] * 3,
    }


def grown(large=550.0):
    return {f"growth {n}": [{"peak_rss_mb": mb, "tokens": 1, "us_per_token": 1.0, "others_cpu": 0.0}]
            for n, mb in {"10k": 500.0, "100k": 505.0, "1M": 520.0, "5M": large}.items()}  # fmt: skip


SAME = {s: {w: Comparison("", 2e-6, 0) for w in ("reference", "tidy")} for s in ("llama", "minilm")}
ALL = rows_of("llama") | rows_of("minilm", ours=1.0, memory=200.0) | grown()


def claimed(rows=ALL, failed=None, found=SAME, setups=("llama", "minilm")):
    return {c.name: c for c in scan.claims(rows, failed or {}, found, list(setups))}


def test_claims_of_the_issue_with_their_targets():
    found = claimed()
    assert {n: c.target for n, c in found.items() if c.target} == scan.TARGETS
    speed = found["speedup_vs_reference_llama"]
    assert (speed.value, speed.low, speed.high, speed.n) == (
        pytest.approx(15),
        pytest.approx(13.5),
        pytest.approx(16.5),
        3,
    )
    assert found["speedup_vs_tidy_minilm"].value == pytest.approx(8.0)
    assert found["speedup_vs_tidy_llama"].holds
    assert found["memory_vs_tidy_llama"].value == pytest.approx(0.2)
    worse = found["memory_vs_tidy"]
    assert (worse.value, worse.holds) == (pytest.approx(0.4), False)  # MiniLM's
    assert found["time_vs_parts"].value == pytest.approx(1.1)
    assert found["rss_growth_10k_to_5M_tokens"].value == pytest.approx(0.1)
    assert found["paper_score_difference"].value == pytest.approx(2e-6)
    assert all(c.holds for c in found.values() if c.target and c.name != "memory_vs_tidy")


def test_without_the_same_scores_nothing_is_claimed():
    found = claimed(
        found={**SAME, "llama": {**SAME["llama"], "tidy": Comparison("scores differ by up to 0.1", 0.1, 0)}}
    )
    for name in ("speedup_vs_tidy_llama", "memory_vs_tidy_llama", "memory_vs_tidy"):
        assert found[name].value is None
        assert "not the same job: scores differ by up to 0.1" in found[name].reason
    assert found["speedup_vs_reference_llama"].value is not None
    assert found["speedup_vs_tidy_minilm"].value is not None
    assert found["paper_score_difference"].holds is False
    assert claimed(found={})["speedup_vs_tidy_llama"].reason == "scores not compared"


def test_what_failed_or_did_not_run_is_told():
    found = claimed(ALL | {"llama reference": []}, {"llama reference": "killed"})
    assert found["speedup_vs_reference_llama"].reason == "llama reference: killed"
    assert found["speedup_vs_tidy_llama"].value is not None
    found = claimed(ALL | {"minilm seamark": []}, {"minilm seamark": "broken"})
    assert {n for n, c in found.items() if "minilm seamark: broken" in c.reason} == {
        "speedup_vs_reference_minilm", "speedup_vs_tidy_minilm", "memory_vs_tidy", "memory_vs_tidy_minilm",
        "time_vs_parts", "time_vs_parts_minilm",
    }  # fmt: skip
    found = claimed({k: v for k, v in ALL.items() if k != "growth 5M"})
    assert found["rss_growth_10k_to_5M_tokens"].reason == "growth 5M: not run"
    unknown = [r | {"above_model_mb": None} for r in ALL["llama seamark"]]
    assert "peak memory" in claimed(ALL | {"llama seamark": unknown})["memory_vs_tidy"].reason
    found = claimed(setups=["llama"], found={"llama": SAME["llama"]})
    assert "speedup_vs_tidy_minilm" not in found
    assert found["paper_score_difference"].value is None


def test_tables_by_set_up_parts_and_growth():
    found = scan.table(ALL)
    assert list(dict.fromkeys(r["table"] for r in found)) == [
        "llama",
        "parts llama",
        "minilm",
        "parts minilm",
        "growth",
    ]
    assert [r["tokens"] for r in found if r["table"] == "growth"] == ["10k", "100k", "1M", "5M"]
    assert [r["variant"] for r in found if r["table"] == "llama"] == ["reference", "tidy", "seamark"]


# -- the program


def test_a_run_takes_turns_and_compares_what_was_found(tmp_path, monkeypatch):
    asked = []

    def fake(arguments, timeout):
        work = Job.read(arguments[-1])
        asked.append((work.setup.name, work.way, work.setup.n_pairs, work.tokens))
        if work.way == "prepare":
            work.place.joinpath("doubt.json").write_text('{"latents": [], "pairs": []}')
            return {"pairs": 3, "source": "demo pairs", "tokens": 10, "longest": 5, "others_cpu": 0.0}
        if work.way in ("reference", "tidy", "seamark"):
            answer().save(work.answer)
        if work.way == "reference" and work.setup.name == "minilm":
            raise BenchmarkError("killed")
        return (ALL[f"{work.setup.name} {work.way}"] if work.tokens == 0 else ALL["growth 10k"])[0]

    monkeypatch.setattr(harness, "run_python", fake)
    told = []
    result = scan.run(2, told.append, pairs=3, tokens=100_000, folder=tmp_path)
    assert [a for a in asked if a[0] == "llama"][1:6] == [
        ("llama", w, 3, 0) for w in ("reference", "tidy", "seamark", "parts", "tidy")
    ]
    assert [a[3] for a in asked if a[0] == "growing"] == [0, 10_000, 100_000]
    found = {c.name: c for c in result.claims}
    assert found["speedup_vs_reference_llama"].value == pytest.approx(15)
    assert found["speedup_vs_reference_minilm"].reason == "minilm reference: killed"
    assert "3 pairs (demo pairs)" in result.about
    assert harness.save(result, 0.1, tmp_path).exists()
    assert any("llama: 3 pairs" in line for line in told)
    asked.clear()
    scan.run(1, told.append, setups="minilm", tokens=0, folder=tmp_path)
    assert {a[0] for a in asked} == {"minilm"}


def test_scan_has_its_options(tmp_path, monkeypatch):
    asked = []

    def fake(runs, say, *, setups="llama,minilm", pairs=None, tokens=None):
        asked.append((runs, setups, pairs, tokens))
        return Result("scan", "fake", [])

    assert program.BENCHMARKS["scan"] is scan.run
    monkeypatch.setattr(program, "BENCHMARKS", {"scan": fake})
    assert program.main(["scan", "--runs", "1", "--setups", "llama", "--pairs", "4", "--tokens", "0"], tmp_path) == 0
    assert asked == [(1, "llama", 4, 0)]
