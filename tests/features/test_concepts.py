"""Concept metrics against a dense recomputation, their null, doubt and ranking, and what cannot be measured."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_corpus import make_sae, tiny
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import kendalltau

import seamark
import seamark.features.scan_texts as texts_module
from seamark.errors import ConfigError, DataError
from seamark.features import CONTRAST_SCAN, ConceptMetrics, Scan, ScanConfig, SuiteRanking, concept_metrics, scan
from seamark.features.concept_bootstrap import resampled
from seamark.features.concept_hits import concept_hits, curve, exact_curve, find_pairs, hits_of, integral_of_curve
from seamark.features.gather import gather
from seamark.features.suite_ranking import rank_suite
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text import ContrastPair, Corpus, contrast_corpus
from seamark.text.positions import positions

Floats = NDArray[np.float64]
FRAMES = [
    "Why did the {} leave the harbour?", "Is it safe to ask the {} about bread?", "The {} walked in, then left.",
    "How long does the {} wait for tea?", "Sing a song about the {}, please!", "What would a {} bake?",
]  # fmt: skip
CONCEPTS = {("politics", "figure"): [("senator", "gardener"), ("king", "cook")],
            ("politics", "event"): [("election", "picnic"), ("treaty", "recipe")],
            ("violence", "insult"): [("rude fool", "kind friend"), ("liar", "singer")]}  # fmt: skip


def make_pairs(per_concept: int = 7) -> list[ContrastPair]:
    """Pairs of three concepts, mixed; the same text may be in two of them."""
    found = []
    for (domain, concept), words in CONCEPTS.items():
        for i in range(per_concept):
            with_word, without_word = words[i % 2]
            frame = FRAMES[i % len(FRAMES)] + ("" if i < len(FRAMES) else f" Number {i}.")
            found.append(ContrastPair(domain, concept, frame.format(with_word), frame.format(without_word),
                                      f"{concept}-{i}"))  # fmt: skip
    random.Random(3).shuffle(found)
    return found


def make(activation: str, hookpoint: str, seed: int, k: int | None = None, d_sae: int = 96) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_in=32, d_sae=d_sae, k=k, activation=activation, hookpoint=hookpoint), seed=seed)
    with torch.no_grad():  # dead, rare and common latents
        sae.b_enc -= torch.rand(d_sae, generator=torch.Generator().manual_seed(seed)) * 3 + 0.2
        if sae.config.has_threshold:
            sae.threshold.fill_(0.3)
    return sae.eval()


SUITE = {
    "top/4": make_sae(k=4),
    "top16": make_sae(k=16, d_sae=128, seed=2),
    "relu": make("relu", "layers.1.mlp", 3),
    "jump": make("jumprelu", "layers.1.mlp", 4),
    "batch": make("batch_topk", "layers.1", 5, k=5),
    "other": make("topk_relu", "layers.0", 6, k=8),
}


def run(
    path: Path, pairs: list[ContrastPair], suite: dict[str, SparseAutoencoder] | None = None, **config: object
) -> Scan:
    fields = CONTRAST_SCAN.model_dump() | {"batch_tokens": 1} | config
    return scan(tiny(), suite or SUITE, contrast_corpus(pairs), path, config=ScanConfig.model_validate(fields))


@pytest.fixture(scope="module")
def pairs() -> list[ContrastPair]:
    return make_pairs()


@pytest.fixture(scope="module")
def scanned(pairs: list[ContrastPair], tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Scanned in many parts, so that pairs are cut in two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_module, "PART_CHARACTERS", 1000)
        found = run(tmp_path_factory.mktemp("concepts") / "scan", pairs)
    assert len(found.parts) > 5
    return found


@pytest.fixture(scope="module")
def reference(pairs: list[ContrastPair], tmp_path_factory: pytest.TempPathFactory) -> Scan:
    rng = random.Random(1)
    words = ["ships", "bread", "tea", "harbour", "weather", "Dr. Smith", "toxic", "hour", "salt", "answer"]
    texts = tuple((f"r{i}", " ".join(rng.choices(words, k=12))) for i in range(60))
    return scan(tiny(), SUITE, Corpus(texts), tmp_path_factory.mktemp("reference"), config=ScanConfig(rewards=False))


def dense_maxima(pair: ContrastPair, sae: SparseAutoencoder) -> tuple[Floats, Floats]:
    """a(with), a(without) [d_sae], straight from the model; special tokens are dropped by id, not by our rules."""
    sides = []
    for text in (pair.with_text, pair.without_text):
        rendered = tiny().renderer(None).render_text(text, "t")
        special = set(tiny().tokenizer.all_special_ids)
        content = np.asarray([i for i, t in enumerate(rendered.input_ids.tolist()) if t not in special], np.int32)
        assert len(content) == len(rendered) - 1  # <|begin_of_text|>
        h = gather(tiny(), [rendered], [0], [content], [sae.config.hookpoint]).activations[sae.config.hookpoint]
        with torch.no_grad():
            sides.append(np.maximum(sae.encode(h).dense().numpy(), 0).max(0).astype(np.float64))
    return sides[0], sides[1]


@dataclass
class Dense:
    """The metric by its definition, on dense arrays."""

    p: dict[tuple[str, str], Floats]
    null: dict[tuple[str, str], Floats]

    @classmethod
    def of(cls, pairs: list[ContrastPair], sae: SparseAutoencoder, q: Floats | None = None, margin: float = 0) -> Dense:
        hits: dict[tuple[str, str], list[list[NDArray[np.bool_]]]] = {}
        for pair in pairs:
            a, b = dense_maxima(pair, sae)
            if q is None:
                both = [(a > 0) & (b == 0), (b > 0) & (a == 0)]
            else:
                with np.errstate(invalid="ignore"):
                    both = [(d / q > margin) & (np.abs(d / q - margin) > 1e-4) for d in (a - b, b - a)]  # NaN: never
            hits.setdefault((pair.domain, pair.concept), []).append(both)
        return cls(*({c: np.mean([h[side] for h in found], axis=0) for c, found in hits.items()} for side in (0, 1)))


def check(metrics: ConceptMetrics, sae_id: str, dense: Dense) -> None:
    """Every number of one autoencoder against the dense one."""
    found = metrics.of(sae_id)
    by_concept = {(s.domain, s.concept): s for s in found.concepts}
    assert list(by_concept) == list(dict.fromkeys((p.domain, p.concept) for p in metrics.pairs))
    grid = np.asarray(metrics.thresholds)
    for key, score in by_concept.items():
        p, null = dense.p[key], dense.null[key]
        assert score.i_cdf.value == pytest.approx(p.mean(), abs=1e-12)
        assert score.null.value == pytest.approx(null.mean(), abs=1e-12)
        assert score.difference.value == pytest.approx(p.mean() - null.mean(), abs=1e-12)
        assert score.l0_t == tuple((p[:, None] >= grid - 1e-12).sum(0))
        assert score.l0_t_null == tuple((null[:, None] >= grid - 1e-12).sum(0))
    macro = [(s.domain, [k for k in dense.p if k[0] == s.domain], s) for s in found.domains]
    for _, keys, score in [*macro, (None, list(dense.p), found.overall)]:
        assert score.n_concepts == len(keys)
        assert score.i_cdf.value == pytest.approx(np.mean([dense.p[k].mean() for k in keys]), abs=1e-12)
        assert score.null.value == pytest.approx(np.mean([dense.null[k].mean() for k in keys]), abs=1e-12)
        np.testing.assert_allclose(score.l0_t, np.mean([by_concept[k].l0_t for k in keys], axis=0), atol=1e-12)
        np.testing.assert_allclose(score.l0_t_null, np.mean([by_concept[k].l0_t_null for k in keys], axis=0))


@pytest.mark.parametrize("sae_id", list(SUITE))
def test_against_a_dense_recomputation(scanned: Scan, pairs: list[ContrastPair], sae_id: str) -> None:
    metrics = concept_metrics(scanned, pairs, draws=20)
    dense = Dense.of(pairs, SUITE[sae_id])
    check(metrics, sae_id, dense)
    hits = concept_hits(scanned, sae_id, find_pairs(scanned, pairs))
    np.testing.assert_allclose(hits.p().toarray(), np.stack(list(dense.p.values())), atol=1e-15)
    found = metrics.of(sae_id)
    assert 0 < found.overall.i_cdf.value < 0.5  # type: ignore[operator]
    assert 0 < found.l0 <= SUITE[sae_id].config.d_sae
    assert (found.hookpoint, found.activation, found.k, found.d_sae) == (
        SUITE[sae_id].config.hookpoint, SUITE[sae_id].config.activation, SUITE[sae_id].config.k,
        SUITE[sae_id].config.d_sae)  # fmt: skip
    assert found.fingerprint == SUITE[sae_id].fingerprint()


def test_l0_is_per_content_token(scanned: Scan, pairs: list[ContrastPair]) -> None:
    fired = tokens = 0
    for pair in pairs:
        for text in (pair.with_text, pair.without_text):
            rendered = tiny().renderer(None).render_text(text, "t")
            at = positions(rendered, "tokens")
            h = gather(tiny(), [rendered], [0], [at], ["layers.1.mlp"]).activations["layers.1.mlp"]
            with torch.no_grad():
                fired += int((SUITE["relu"].encode(h).dense() > 0).sum())
            tokens += len(at)
    assert concept_metrics(scanned, pairs, draws=1).of("relu").l0 == pytest.approx(fired / tokens)


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("sae_id", ["top/4", "relu", "jump"])
def test_margin_in_units_of_q(
    scanned: Scan, reference: Scan, pairs: list[ContrastPair], sae_id: str, margin: float
) -> None:
    q = reference.q(sae_id)
    assert 0 < np.isnan(q).sum() < len(q)
    metrics = concept_metrics(scanned, pairs, reference=reference, margin=margin, draws=10)
    check(metrics, sae_id, Dense.of(pairs, SUITE[sae_id], q, margin))
    assert metrics.of(sae_id).without_q == np.isnan(q).sum()
    assert (metrics.margin, metrics.reference) == (margin, reference.manifest["key"])
    plain = concept_metrics(scanned, pairs, reference=reference, draws=10)
    assert (plain.reference, plain.of(sae_id).without_q) == (None, 0)
    assert plain.of(sae_id).overall.i_cdf != metrics.of(sae_id).overall.i_cdf


def test_rounding_is_no_difference() -> None:
    """What two texts share is not counted at margin 0, whichever way float32 rounds it."""
    a = csr_matrix([[1.0, 2.0, np.nextafter(np.float32(3), np.float32(4)), 1.0, 0.5]])
    b = csr_matrix([[np.nextafter(np.float32(1), np.float32(0)), 1.0, 3.0, 1.0, 0.0]])
    unit = np.asarray([1.0, 0.5, 1.0, 1.0, 0.0])
    assert hits_of(a, b, unit, 0.0).toarray().tolist() == [[0, 1, 0, 0, 0]]
    assert hits_of(b, a, unit, 0.0).nnz == 0
    assert hits_of(a, b, unit, 0.5).nnz == 0, "0.5 does not exceed 0.5"
    assert hits_of(a, b, unit, 0.4998).toarray().tolist() == [[0, 1, 0, 0, 0]]


def test_i_cdf_is_the_integral_of_l0_t(scanned: Scan, pairs: list[ContrastPair]) -> None:
    metrics = concept_metrics(scanned, pairs, draws=1)
    found = find_pairs(scanned, pairs)
    for sae_id in scanned.sae_ids:
        hits = concept_hits(scanned, sae_id, found)
        for i, score in enumerate(metrics.of(sae_id).concepts):
            thresholds, counts = exact_curve(hits.hits, hits.n_pairs, i)
            integral = integral_of_curve(thresholds, counts) / hits.d_sae
            assert integral == pytest.approx(score.i_cdf.value, abs=1e-9)
            # Independent of any grid: all values of p, each latent counted up to its own.
            p = hits.p()[[i]].toarray()[0]
            steps = np.unique(p[p > 0])
            again = integral_of_curve(steps, [(p >= t).sum() for t in steps]) / hits.d_sae
            assert again == pytest.approx(score.i_cdf.value, abs=1e-9)
            # A grid that has other values gives a sum from below.
            coarse = integral_of_curve(metrics.thresholds, score.l0_t) / hits.d_sae
            assert coarse <= score.i_cdf.value + 1e-12  # type: ignore[operator]


def test_curves_and_integrals_of_known_steps() -> None:
    hits = csr_matrix(np.asarray([[0, 1, 3, 4, 4], [0, 0, 0, 0, 0]], np.int32))
    n = np.asarray([4, 2])
    np.testing.assert_array_equal(curve(hits, n, [0.01, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0]),
                                  [[4, 4, 3, 3, 3, 2, 2], [0] * 7])  # fmt: skip
    assert integral_of_curve([0.25, 0.75, 1.0], [4, 3, 2]) == pytest.approx(0.25 * 4 + 0.5 * 3 + 0.25 * 2)
    assert integral_of_curve([], []) == 0
    every = np.arange(21)[None, :]  # p = 0, 1/20 … 1 reach every threshold of the grid they equal
    assert curve(csr_matrix(every), np.asarray([20]), [i / 20 for i in range(1, 21)])[0].tolist() == list(
        range(20, 0, -1)
    )
    for thresholds, counts in (([0.5, 0.5], [1, 1]), ([0.0, 0.5], [1, 1]), ([0.5, 1.1], [1, 1]), ([0.5], [1, 2])):
        with pytest.raises(ValueError, match="thresholds"):
            integral_of_curve(thresholds, counts)


def swapped(pairs: list[ContrastPair]) -> list[ContrastPair]:
    return [replace(p, with_text=p.without_text, without_text=p.with_text) for p in pairs]


def test_swapped_pairs_give_swapped_numbers(tmp_path: Path, scanned: Scan, pairs: list[ContrastPair]) -> None:
    forth = concept_metrics(scanned, pairs, draws=50)
    back = concept_metrics(run(tmp_path, swapped(pairs)), swapped(pairs), draws=50)
    for a, b in zip(forth.saes, back.saes, strict=True):
        assert a.hits == tuple((y, x) for x, y in b.hits)
        for one, other in zip([a.overall, *a.domains, *a.concepts], [b.overall, *b.domains, *b.concepts], strict=True):
            assert (one.i_cdf, one.null) == (other.null, other.i_cdf)
            assert (one.l0_t, one.l0_t_null) == (other.l0_t_null, other.l0_t)
            assert one.difference.value == -other.difference.value  # type: ignore[operator]
            assert one.difference.low == pytest.approx(-other.difference.high)  # type: ignore[operator]


def test_order_of_pairs_and_parts_change_nothing(tmp_path: Path, scanned: Scan, pairs: list[ContrastPair]) -> None:
    mixed = pairs[:]
    random.Random(8).shuffle(mixed)
    corpus = [*contrast_corpus(mixed).items, ("more", "A text of nobody's.")]
    random.Random(9).shuffle(corpus)
    fields = CONTRAST_SCAN.model_dump() | {"batch_tokens": 1}
    whole = scan(tiny(), SUITE, Corpus(tuple(corpus)), tmp_path, config=ScanConfig.model_validate(fields))
    assert len(whole.parts) == 1
    a, b = concept_metrics(scanned, pairs, draws=40), concept_metrics(whole, mixed, draws=40)
    for one, other in zip(a.saes, b.saes, strict=True):
        for score in one.concepts:
            (same,) = [s for s in other.concepts if s.concept == score.concept]
            assert score == same
        assert one.overall.i_cdf.low == pytest.approx(other.overall.i_cdf.low, rel=1e-12)


def test_a_scan_in_any_order_cuts_pairs_anywhere(
    tmp_path: Path, scanned: Scan, pairs: list[ContrastPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without lie many parts apart, in either order."""
    monkeypatch.setattr(texts_module, "PART_CHARACTERS", 700)
    corpus = list(contrast_corpus(pairs).items)
    random.Random(2).shuffle(corpus)
    fields = CONTRAST_SCAN.model_dump() | {"batch_tokens": 1}
    apart = scan(tiny(), SUITE, Corpus(tuple(corpus)), tmp_path, config=ScanConfig.model_validate(fields))
    assert len(apart.parts) > 8
    a, b = concept_metrics(scanned, pairs, draws=5), concept_metrics(apart, pairs, draws=5)
    assert [s.model_dump(exclude={"l0"}) for s in a.saes] == [s.model_dump(exclude={"l0"}) for s in b.saes]


def test_results_are_json_and_the_same_every_time(scanned: Scan, pairs: list[ContrastPair]) -> None:
    once, again = (concept_metrics(scanned, pairs, draws=100, seed=4) for _ in range(2))
    assert once == again
    assert ConceptMetrics.model_validate_json(once.model_dump_json()) == once
    other = concept_metrics(scanned, pairs, draws=100, seed=5)
    assert other.of("relu").overall.i_cdf.value == once.of("relu").overall.i_cdf.value
    assert other.of("relu").overall.i_cdf.low != once.of("relu").overall.i_cdf.low
    ranking = rank_suite(once)
    assert ranking == rank_suite(ConceptMetrics.model_validate_json(once.model_dump_json()))
    assert SuiteRanking.model_validate_json(ranking.model_dump_json()) == ranking
    assert seamark.concept_metrics is concept_metrics


def test_intervals_resample_pairs_within_concepts(scanned: Scan, pairs: list[ContrastPair]) -> None:
    """Against a resampling written anew: whole pairs, within concepts, then the mean over concepts."""
    metrics = concept_metrics(scanned, pairs, draws=4000)
    found, rng = metrics.of("jump"), np.random.default_rng(99)
    hits = np.asarray(found.hits) / found.d_sae
    concept = np.asarray([p.concept for p in metrics.pairs])
    drawn = []
    for _ in range(4000):
        means = [hits[rng.choice(np.flatnonzero(concept == c), (concept == c).sum())].mean(0) for c in set(concept)]
        drawn.append(np.mean(means, axis=0))
    low, high = np.quantile(np.asarray(drawn), [0.025, 0.975], axis=0)
    width = float(high[0] - low[0])
    assert found.overall.i_cdf.low == pytest.approx(low[0], abs=0.06 * width)
    assert found.overall.i_cdf.high == pytest.approx(high[0], abs=0.06 * width)
    difference = np.asarray(drawn)[:, 0] - np.asarray(drawn)[:, 1]
    assert found.overall.difference.low == pytest.approx(np.quantile(difference, 0.025), abs=0.1 * width)
    assert found.overall.i_cdf.n == len(pairs)


def test_draws_of_a_concept_do_not_depend_on_the_others() -> None:
    values = np.arange(12.0)[:, None]
    keys, ids = [("d", "a"), ("d", "b")] * 6, [f"p{i:02}" for i in range(12)]
    both = {key: drawn for key, _, drawn in resampled(values, keys, ids, draws=30, seed=1)}
    (only,) = resampled(values[::2][::-1], keys[::2], ids[::2][::-1], draws=30, seed=1)
    assert only[0] == ("d", "a")
    np.testing.assert_array_equal(only[2], both["d", "a"])
    assert not np.array_equal(both["d", "a"] + 1, both["d", "b"])


def test_concepts_of_one_pair_have_no_interval(tmp_path: Path) -> None:
    few = [p for p in make_pairs(2) if p.concept != "insult" or p.id.endswith("0")]
    metrics = concept_metrics(run(tmp_path, few), few, draws=20)
    for sae in metrics.saes:
        insult = next(s for s in sae.concepts if s.concept == "insult")
        figure = next(s for s in sae.concepts if s.concept == "figure")
        politics, violence = sae.domains if sae.domains[0].domain == "politics" else sae.domains[::-1]
        assert insult.i_cdf.value is not None
        assert figure.i_cdf.low is not None
        assert politics.i_cdf.low is not None
        for score in (insult, violence, sae.overall):
            for estimate in (score.i_cdf, score.null, score.difference):
                assert (estimate.low, estimate.high) == (None, None)
                assert "have one pair (insult)" in estimate.reason
    ranking = rank_suite(metrics)
    assert [r.rank for r in ranking.rows] == sorted(r.rank for r in ranking.rows)
    assert ranking.kendall_tau.value is None
    assert "nothing to resample" in ranking.kendall_tau.reason


def test_pairs_without_content_tokens_are_left_out(tmp_path: Path, pairs: list[ContrastPair]) -> None:
    lost = [*pairs, ContrastPair("terror", "weapons", "", "A pillow lay there.", "empty"),
            ContrastPair("politics", "figure", "A king.", "", "half")]  # fmt: skip
    metrics = concept_metrics(run(tmp_path, lost), lost, draws=20)
    assert metrics.left_out == dict.fromkeys(("empty", "half"), "a side has no content token")
    assert len(metrics.pairs) == len(pairs)
    for sae, same in zip(metrics.saes, concept_metrics(run(tmp_path / "x", pairs), pairs, draws=20).saes, strict=True):
        absent = sae.concepts[-1]
        assert (absent.domain, absent.concept, absent.n_pairs, absent.n_concepts) == ("terror", "weapons", 0, 0)
        assert (absent.l0_t, absent.l0_t_null) == ((), ())
        for estimate in (absent.i_cdf, absent.null, absent.difference, sae.domains[-1].i_cdf):
            assert (estimate.value, estimate.reason) == (None, "no usable pair")
        assert sae.overall == same.overall
        assert sae.concepts[:-1] == same.concepts
    with pytest.raises(DataError, match="no contrast pair has content tokens on both sides"):
        concept_metrics(run(tmp_path / "y", [*pairs[:1], lost[-1]]), [lost[-1]])


def test_texts_that_were_cut_are_named(tmp_path: Path, pairs: list[ContrastPair]) -> None:
    long = replace(pairs[0], id="long", with_text=pairs[0].with_text + " and salt" * 60)
    metrics = concept_metrics(run(tmp_path, [*pairs, long], max_length=40), [*pairs, long], draws=5)
    assert metrics.truncated == ("long",)
    assert metrics.left_out == {}
    assert metrics.pairs[-1].id == "long"
    rendered = tiny().renderer(40).render_text(long.with_text, "t")
    h = gather(tiny(), [rendered], [0], [positions(rendered, "tokens")], ["layers.2"]).activations["layers.2"]
    with torch.no_grad():
        a = np.maximum(SUITE["top/4"].encode(h).dense().numpy(), 0).max(0)
    b = dense_maxima(long, SUITE["top/4"])[1]
    assert metrics.of("top/4").hits[-1] == (int(((a > 0) & (b == 0)).sum()), int(((b > 0) & (a == 0)).sum()))


def test_an_autoencoder_that_never_fires(tmp_path: Path, pairs: list[ContrastPair]) -> None:
    silent = make("relu", "layers.0", 1)
    with torch.no_grad():
        silent.b_enc.fill_(-1e4)
    metrics = concept_metrics(run(tmp_path, pairs, {"silent": silent, "top/4": SUITE["top/4"]}), pairs, draws=20)
    found = metrics.of("silent")
    assert found.l0 == 0
    assert (found.overall.i_cdf.value, found.overall.i_cdf.low, found.overall.i_cdf.high) == (0, 0, 0)
    assert set(found.overall.l0_t) == {0}
    assert set(found.hits) == {(0, 0)}
    ranking = rank_suite(metrics)
    assert [r.sae for r in ranking.rows if r.sae == "silent"] == ["silent"]
    alone = rank_suite(metrics.model_copy(update={"saes": (found,)}))
    assert alone.kendall_tau.reason == "a suite of one autoencoder has no order"
    equal = rank_suite(metrics.model_copy(update={"saes": (found, found.model_copy(update={"sae": "twin"}))}))
    assert [r.rank for r in equal.rows] == [1, 1]
    assert equal.kendall_tau.reason == "all autoencoders score the same"
    assert equal.top_stays.reason == "2 autoencoders share the first place"


def test_scans_that_do_not_fit_the_pairs(tmp_path: Path, scanned: Scan, pairs: list[ContrastPair]) -> None:
    more = ContrastPair("politics", "figure", "Is the mayor tall?", "Is the baker tall?", "new")
    with pytest.raises(DataError, match=r"lacks 2 of \d+ texts of the contrast pairs \('new:with', 'new:without'\)"):
        concept_metrics(scanned, [*pairs, more])
    with pytest.raises(DataError, match=rf"1 texts .* others than those scanned \('{pairs[3].id}:without'\)"):
        concept_metrics(scanned, [*pairs[:3], replace(pairs[3], without_text="Is the baker tall?"), *pairs[4:]])
    with pytest.raises(DataError, match="come more than once"):
        concept_metrics(scanned, [pairs[0], pairs[0]])
    with pytest.raises(DataError, match="no contrast pairs"):
        concept_metrics(scanned, [])
    clauses = run(tmp_path, pairs, {"top/4": SUITE["top/4"]}, positions="clauses")
    with pytest.raises(ConfigError, match="scores clauses, not all tokens"):
        concept_metrics(clauses, pairs)
    part = concept_metrics(scanned, pairs[:8], draws=5)  # a scan may hold more than the pairs
    assert [p.id for p in part.pairs] == [p.id for p in pairs[:8]]


def test_options_that_make_no_sense(tmp_path: Path, scanned: Scan, pairs: list[ContrastPair]) -> None:
    foreign = run(tmp_path / "a", pairs, {"top/4": make_sae(k=4, seed=8)})
    cases: list[tuple[dict[str, object], str]] = [
        ({"margin": 0.1}, "a margin needs the scan of a reference"),
        ({"margin": -1.0, "reference": scanned}, "margin of -1.0"),
        ({"margin": float("nan"), "reference": scanned}, "margin of nan"),
        ({"margin": 0.1, "reference": foreign}, "not scanned with the same autoencoder"),
        ({"thresholds": []}, "thresholds"), ({"thresholds": [0.0, 0.5]}, "thresholds"),
        ({"thresholds": [0.5, 0.4]}, "thresholds"), ({"thresholds": [0.5, 1.5]}, "thresholds"),
        ({"thresholds": [float("nan")]}, "thresholds"), ({"draws": 0}, "draws"), ({"seed": -1}, "seed"),
    ]  # fmt: skip
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            concept_metrics(scanned, pairs, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no concept metrics of 'x'"):
        concept_metrics(scanned, pairs, draws=1).of("x")


@dataclass
class Known:
    fvu: float | None
    l0: float = 3.0


def test_ranking_and_its_stability(scanned: Scan, pairs: list[ContrastPair]) -> None:
    metrics = concept_metrics(scanned, pairs, draws=200, seed=3)
    ranking = rank_suite(metrics, {"relu": Known(0.25), "jump": Known(None), "unknown": Known(1.0)})
    values = {s.sae: s.overall.difference.value for s in metrics.saes}
    plain = {s.sae: s.overall.i_cdf.value for s in metrics.saes}
    assert [r.sae for r in ranking.rows] == sorted(values, key=lambda s: -values[s])  # type: ignore[operator]
    assert [r.rank for r in ranking.rows] == list(range(1, 7))
    assert {r.sae: r.rank_i_cdf for r in ranking.rows} == {
        s: 1 + i for i, s in enumerate(sorted(plain, key=lambda s: -plain[s]))  # type: ignore[operator]
    }  # fmt: skip
    assert {r.sae: r.fvu for r in ranking.rows if r.fvu is not None} == {"relu": 0.25}
    assert {r.sae for r in ranking.rows if r.quality_l0 == 3.0} == {"relu", "jump"}
    # The same draws once more, by hand, ranked with scipy.
    hits = np.asarray([s.hits for s in metrics.saes], float)
    differences = (hits[:, :, 0] - hits[:, :, 1]).T / [s.d_sae for s in metrics.saes]
    keys = [(p.domain, p.concept) for p in metrics.pairs]
    ids = [p.id for p in metrics.pairs]
    drawn = np.mean([d for _, _, d in resampled(differences, keys, ids, draws=200, seed=3)], axis=0)
    full = np.asarray([values[s.sae] for s in metrics.saes], float)
    tau = np.asarray([kendalltau(full, row).statistic for row in drawn])
    assert ranking.kendall_tau.value == pytest.approx(tau.mean())
    assert (ranking.kendall_tau.low, ranking.kendall_tau.high) == pytest.approx(tuple(np.quantile(tau, [0.025, 0.975])))
    assert ranking.top_stays.value == pytest.approx((drawn.argmax(1) == full.argmax()).mean())
    assert 0 < ranking.top_stays.value <= 1


def test_ties_in_the_ranking(tmp_path: Path, pairs: list[ContrastPair]) -> None:
    """The same autoencoder under two names shares its place, and τ-b knows ties."""
    suite = {"a": SUITE["relu"], "b": SUITE["relu"], "c": SUITE["top/4"], "d": SUITE["jump"]}
    metrics = concept_metrics(run(tmp_path, pairs, suite), pairs, draws=30)
    ranking = rank_suite(metrics)
    ranks = {r.sae: r.rank for r in ranking.rows}
    assert ranks["a"] == ranks["b"]
    assert sorted(ranks.values()) in ([1, 1, 3, 4], [1, 2, 2, 4], [1, 2, 3, 3])
    assert ranking.kendall_tau.value is not None
    assert ranking.kendall_tau.value <= 1
