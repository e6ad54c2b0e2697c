"""Fitting on other prompts: folds, antisymmetry, and what is found in planted differences."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from seamark.audit import crossfit
from seamark.audit.crossfit import Block, _path, crossfit_logistic, crossfit_mean, fold_of, prompt_codes, row_folds
from seamark.errors import DataError
from seamark.text.pairs import Pairs, PreferencePair


def planted(n: int = 600, d: int = 30, wrong: float = 0.1) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(differences [n, d], which were negated [n], prompts): columns 0-4 speak for the label."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.where(rng.random((n, d)) < 0.3, np.logspace(-2, 2, d), 0.0)
    w = np.r_[np.full(5, 3.0), np.zeros(d - 5)] / np.logspace(-2, 2, d)
    x *= np.where(x @ w + rng.normal(size=n) * 0.5 > 0, 1.0, -1.0)[:, None]
    flipped = rng.random(n) < wrong
    return np.where(flipped[:, None], -x, x), flipped, [f"h{i % (n // 2)}" for i in range(n)]


def test_a_prompt_is_in_one_fold_whatever_the_order() -> None:
    pairs = Pairs(tuple(PreferencePair(f"p{i}", "safety", f"q{i % 23}", "a", "b") for i in range(60)))
    folds = fold_of(pairs, 5, seed=1)
    assert fold_of(Pairs(pairs.items[::-1]), 5, seed=1) == folds != fold_of(pairs, 5, seed=2)
    by_prompt = {p.prompt_key: folds[p.id] for p in pairs}
    assert all(by_prompt[p.prompt_key] == folds[p.id] for p in pairs)
    sizes = np.bincount(list(by_prompt.values()))
    assert sorted(sizes.tolist()) == [4, 4, 5, 5, 5]
    assert set(fold_of({"a": "x", "b": "y"}, 5).values()) == {0, 1}
    with pytest.raises(DataError, match="too few"):
        fold_of({"a": "x", "b": "x"}, 5)


@pytest.mark.parametrize("sparse", [True, False])
def test_planted_weights_are_found_and_a_pair_does_not_judge_itself(sparse: bool) -> None:
    x, flipped, prompts = planted()
    form = sp.csr_matrix if sparse else np.asarray
    scores = crossfit_logistic(form(x), prompts)
    assert roc_auc_score(flipped, -scores) > 0.9
    fold = row_folds(prompts, 5)
    mine = np.flatnonzero(fold == fold[7])  # a whole fold swapped: nobody who judges it has seen a label of it
    x[mine] *= -1
    again = crossfit_logistic(form(x), prompts)
    assert np.allclose(again[mine], -scores[mine], rtol=1e-7)
    x[mine] *= -1
    in_sample = next(iter(_path([Block.of(form(x))], [1.0], scale=True)))
    assert np.corrcoef(x @ in_sample, scores)[0, 1] < 0.9999


def test_sparse_and_dense_agree_and_scales_do_not_matter() -> None:
    x, _, prompts = planted(300)
    dense = crossfit_logistic(x, prompts)
    assert np.allclose(crossfit_logistic(sp.csr_matrix(x), prompts), dense, rtol=1e-4, atol=1e-4)
    other = x * np.logspace(3, -3, x.shape[1])
    assert np.allclose(crossfit_logistic(other, prompts), dense, rtol=1e-3, atol=1e-3)
    assert not np.allclose(crossfit_logistic(other, prompts, scale=False), dense, rtol=1e-2)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_fit_is_that_of_both_orders_of_every_pair(strength: float) -> None:
    x, _, _ = planted(300)
    unit = np.sqrt((x * x).mean(0))
    both, label = np.r_[x, -x] / unit, np.r_[np.ones(300), np.zeros(300)]
    # Seen twice, so half the C gives the same penalty.
    expected = LogisticRegression(C=strength / 2, fit_intercept=False, max_iter=2000, tol=1e-8).fit(both, label).coef_
    half = len(x) // 2
    found = next(iter(_path([Block.of(x[:half]), Block.of(sp.csr_matrix(x[half:]))], [strength], scale=True)))
    assert np.allclose(found * unit, expected[0], atol=3e-3)


def test_of_many_pairs_some_choose_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole prompts as far as they go, the same whatever the order; the fits themselves are on all pairs."""
    x, flipped, prompts = planted(900)
    every = crossfit_logistic(x, prompts)
    fitted, chosen_by = [], []
    path, choose = crossfit._path, crossfit._choose
    monkeypatch.setattr(crossfit, "CHOOSE_FROM", 300)
    monkeypatch.setattr(crossfit, "_choose", lambda blocks, *a, **k: chosen_by.append(sum(map(len, blocks)))
                        or choose(blocks, *a, **k))  # fmt: skip
    monkeypatch.setattr(crossfit, "_path", lambda blocks, strengths, **k: fitted.append(sum(map(len, blocks)))
                        or path(blocks, strengths, **k))  # fmt: skip
    some = crossfit_logistic(x, prompts)
    assert chosen_by == [300]
    assert max(fitted[:-5]) == 180  # of the sample without two folds
    assert sorted(fitted[-5:]) == [720] * 5
    assert roc_auc_score(~flipped, some) > roc_auc_score(~flipped, every) - 0.01
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(crossfit_logistic(x[order], [prompts[i] for i in order]), some[order], atol=1e-6)
    assert not np.allclose(crossfit_logistic(x[:300], prompts[:300]), some[:300], atol=1e-6)


def test_columns_that_are_hardly_ever_used_weigh_nothing() -> None:
    x, _, _ = planted(300)
    x[:, -1] = 0.0
    x[:4, -1] = 1.0
    found = next(iter(_path([Block.of(x)], [1.0], scale=True)))
    assert found[-1] == 0.0
    assert np.count_nonzero(found) == x.shape[1] - 1


def test_chance_stays_chance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 50)) * np.where(rng.random(800) < 0.5, 1, -1)[:, None]
    scores = crossfit_logistic(x, [str(i) for i in range(800)])
    assert 0.44 < (scores > 0).mean() < 0.56


def test_the_mean_difference_of_other_folds() -> None:
    x = np.eye(3)[[0, 0, 1, 2]].astype(np.float32)
    prompts = ["a", "b", "a", "b"]  # two folds: rows 0 and 2, rows 1 and 3
    half = 0.5**0.5
    assert np.allclose(crossfit_mean(x, prompts, 2), [half, half, 0, 0])


def test_scores_without_a_prompt() -> None:
    assert prompt_codes({"b": 1.0, "a": 0.0}, {"a": "x", "b": "x"})[1].tolist() == [0, 0]
    with pytest.raises(DataError, match="1 scored pairs have no prompt, the first being 'b'"):
        prompt_codes({"b": 1.0, "a": 0.0}, {"a": "x"})


@pytest.mark.slow
def test_fifty_thousand_pairs_in_a_minute() -> None:
    import time

    rng = np.random.default_rng(0)
    n, d, k = 50_000, 3072, 100
    popular = np.minimum(rng.zipf(1.5, size=d), 500).astype(float)
    columns = rng.choice(d, size=2 * n * k, p=popular / popular.sum())
    values = rng.random(2 * n * k).astype(np.float32) * np.tile(np.r_[np.ones(k), -np.ones(k)], n).astype(np.float32)
    x = sp.csr_matrix((values, (np.repeat(np.arange(n), 2 * k), columns)), shape=(n, d))
    signs = np.where(rng.random(n) < 1 / (1 + np.exp(-3 * (x @ rng.normal(size=d)))), 1.0, -1.0).astype(np.float32)
    x = sp.csr_matrix(sp.diags(signs) @ x, dtype=np.float32)
    start = time.process_time()
    crossfit_logistic(x, [f"h{i % 40_000}" for i in range(n)])
    assert time.process_time() - start < 60


def test_single_precision_is_as_good_as_double_and_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, prompts = planted(200)
    narrow, wide = x.astype(np.float32), x.astype(np.float32).astype(np.float64)
    monkeypatch.setattr(crossfit, "AT_ONCE", 7 * x.shape[1] + 1)
    block, weights = Block.of(narrow), np.logspace(0, -3, x.shape[1])
    assert np.allclose(block.margins(weights), wide @ weights, rtol=1e-12, atol=1e-13)
    tracemalloc.start()
    many = Block.of(np.ones((20_000, 64), np.float32))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    many.margins(np.ones(64))
    used = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert used < 20_000 * 64 * 2, "a copy would take 8 bytes a number"
    assert np.allclose(crossfit_logistic(narrow, prompts), crossfit_logistic(wide, prompts), rtol=1e-3, atol=1e-3)
    whole = np.round(x * 10).astype(np.int64)
    assert np.allclose(crossfit_logistic(whole, prompts), crossfit_logistic(whole.astype(float), prompts))
