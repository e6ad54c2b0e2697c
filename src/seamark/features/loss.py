"""What a language model loses when its activations pass through an autoencoder: cross-entropy and KL divergence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from seamark.errors import ConfigError, DataError, ModelError
from seamark.features.scan import check_suite
from seamark.features.splice import Replace, ablate, check_replaced, mean_activation, splice
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.loading import LanguageModel
from seamark.model.precision import Precision
from seamark.model.reading import Change, apply_at
from seamark.model.skipping import skipping_below
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate, Floats, bootstrap_of_sums, cluster_codes
from seamark.text.positions import Scope
from seamark.text.rendering import Rendered

LOGITS = 1 << 28
"""Logits of a batch (1 GiB of float32): with a large vocabulary batches are smaller than `batch_tokens`."""
ROWS = 256
"""Positions whose distributions are compared at once."""
LEAST = 1e-6
"""Loss in nats that an ablation must cost for a share of it to mean something."""


class LossRecovered(BaseModel):
    """What the next-token loss of a language model becomes with an autoencoder in its path. Losses are nats a token.

    Baselines replace the same activations by zero, and by their mean over all positions replaced. Means are over
    tokens, intervals over texts.
    """

    model_config = ConfigDict(frozen=True)

    hookpoint: str
    """Where activations are replaced."""
    ce_clean: Estimate
    """Cross-entropy of the model as it is."""
    ce_sae: Estimate
    """… with the autoencoder's reconstruction in place of the activations."""
    ce_zero: Estimate
    """… with zeros in their place."""
    ce_mean: Estimate
    """… with their mean in their place."""
    ce_increase: Estimate
    """`ce_sae` − `ce_clean`, text by text."""
    ce_recovered: Estimate
    """(CE_zero − CE_sae) / (CE_zero − CE_clean): 1 where nothing is lost, 0 where zeros would do as well, below 0 where
    they would do better. SAELens: `ce_loss_score`. Not available where zeros cost nothing."""
    ce_recovered_from_mean: Estimate
    """The same against mean ablation, the harder baseline."""
    kl_sae: Estimate
    """KL(clean ‖ with the autoencoder) of next-token distributions."""
    kl_zero: Estimate
    """KL(clean ‖ zero ablation)."""
    kl_mean: Estimate
    """KL(clean ‖ mean ablation)."""
    kl_recovered: Estimate
    """1 − KL_sae / KL_zero. SAELens: `kl_div_score`."""
    kl_recovered_from_mean: Estimate
    """1 − KL_sae / KL_mean."""
    n_texts: int
    n_tokens: int
    """Tokens predicted."""
    n_replaced: int
    """Positions replaced."""


def loss_recovered(
    model: LanguageModel, sae: SparseAutoencoder, texts: Sequence[Rendered], *, scope: Scope = "all",
    replace: Replace = "all", clusters: Sequence[str] | None = None, batch_tokens: int = 8192,
    precision: Precision = "fp32", seed: int = 0,
) -> LossRecovered:  # fmt: skip
    """Loss of a causal language model clean, through one autoencoder, and ablated. Arguments as `losses_recovered`."""
    return losses_recovered(
        model, {"sae": sae}, texts, scope=scope, replace=replace, clusters=clusters, batch_tokens=batch_tokens,
        precision=precision, seed=seed,
    )["sae"]  # fmt: skip


def losses_recovered(
    model: LanguageModel, suite: Mapping[str, SparseAutoencoder], texts: Sequence[Rendered], *, scope: Scope = "all",
    replace: Replace = "all", clusters: Sequence[str] | None = None, batch_tokens: int = 8192,
    precision: Precision = "fp32", seed: int = 0,
) -> dict[str, LossRecovered]:  # fmt: skip
    """Loss of a causal language model clean, through each of several autoencoders alone, and ablated.

    Texts run once through the blocks below a hookpoint (their output is held in memory: one activation a token), then
    through those above it for the clean model, the two ablations and each autoencoder there.

    Args:
        suite: {name: autoencoder}; each is spliced in at its own hookpoint.
        texts: rendered texts; those with nothing to predict are left out.
        scope: tokens that are predicted: "all" behind the first of a text, or those of the "response".
        replace: positions replaced, see `splice.Replace`.
        clusters: a label for each text (its prompt), the unit of resampling; each text for itself if absent.
        batch_tokens: padded tokens in a batch of the model.
        precision: number format of the model's pass; losses are computed in float32.

    Raises:
        DataError: nothing to predict or to replace, or a loss that is not finite.
        ConfigError: an autoencoder without hookpoint or of another width than the model's; clusters that do not fit.
        ModelError: no such hookpoint, or tokens see those that follow them.
    """
    check_suite(model, suite)
    if clusters is not None and len(clusters) != len(texts):
        raise ConfigError(f"{len(clusters)} clusters for {len(texts)} texts", where="loss_recovered")
    labels = [str(i) for i in range(len(texts))] if clusters is None else clusters
    kept = [i for i, t in enumerate(texts) if len(_predicted(t, scope))]
    if not kept:
        raise DataError("no text with a token to predict", where="loss_recovered", fix="Give longer texts")
    texts, codes = [texts[i] for i in kept], cluster_codes([labels[i] for i in kept])
    n_replaced = check_replaced(texts, replace)
    _check_causal(model, min(texts, key=len), precision)
    reader = _Reader(model, texts, scope, batch_tokens, precision)
    out: dict[str, LossRecovered] = {}
    for hookpoint, members in by_hookpoint(suite).items():
        with skipping_below(model, hookpoint, texts, precision=precision, batch_tokens=batch_tokens):
            mean_D = mean_activation(model, hookpoint, texts, replace, batch_tokens=batch_tokens, precision=precision)
            ablations = [ablate(0.0, texts, replace), ablate(mean_D, texts, replace)]
            spliced = [splice(sae, texts, replace) for sae in members.values()]
            ce_CN, kl_CN, tokens_N = reader.read(hookpoint, ablations + spliced)
        for i, name in enumerate(members):
            sums = np.stack([tokens_N, *ce_CN[[0, 3 + i, 1, 2]], *kl_CN[[3 + i, 1, 2]]])
            out[name] = _summary(hookpoint, sums, codes, n_replaced, seed)
    return {name: out[name] for name in suite}


def by_hookpoint(suite: Mapping[str, SparseAutoencoder]) -> dict[str, dict[str, SparseAutoencoder]]:
    """{hookpoint: its autoencoders}."""
    found: dict[str, dict[str, SparseAutoencoder]] = {}
    for name, sae in suite.items():
        found.setdefault(sae.config.hookpoint, {})[name] = sae
    return found


def _predicted(text: Rendered, scope: Scope) -> NDArray[np.int64]:
    """Indices of the tokens that are predicted from those before them."""
    start, end = text.response_span if scope == "response" else (0, len(text))
    return np.arange(max(start, 1), max(end, 1))


@dataclass(frozen=True)
class _Reader:
    """Runs texts through a model and sums, text by text, the losses of its predictions."""

    model: LanguageModel
    texts: Sequence[Rendered]
    scope: Scope
    batch_tokens: int
    precision: Precision

    def read(self, hookpoint: str, changes: Sequence[Change]) -> tuple[Floats, Floats, Floats]:
        """Sums of cross-entropy and of KL(clean ‖ ·), each [C, texts] with the clean model first; tokens [texts]."""
        n = len(self.texts)
        ce_CN, kl_CN, tokens_N = np.zeros((1 + len(changes), n)), np.zeros((1 + len(changes), n)), np.zeros(n)
        with progress(f"Loss through {hookpoint}", n, "texts") as advance:
            for batch in self._batches():
                rows_M, at_M2, target_M = self._predictions(batch)
                np.add.at(tokens_N, rows_M, 1.0)
                clean_BTV = self.model.logits(batch, precision=self.precision)
                for c, logits_BTV in enumerate(self._variants(batch, clean_BTV, hookpoint, changes)):
                    ce_M, kl_M = _compare(clean_BTV, logits_BTV, at_M2, target_M)
                    self._check(ce_M, rows_M, hookpoint)
                    np.add.at(ce_CN[c], rows_M, ce_M)
                    np.add.at(kl_CN[c], rows_M, kl_M)
                advance(len(batch.rows))
        return ce_CN, kl_CN, tokens_N

    def _batches(self) -> Iterator[Batch]:
        most = max(1, min(self.batch_tokens, LOGITS // int(self.model.config.vocab_size)))
        for rows in plan_batches([len(t) for t in self.texts], most):
            yield collate(self.texts, int(self.model.config.pad_token_id), rows=rows)

    def _predictions(self, batch: Batch) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """Of each prediction in a batch: its text [M], where it is made [M, 2] (row, position), the right token [M]."""
        ends = [_predicted(self.texts[row], self.scope) for row in batch.rows]
        at_B = np.repeat(np.arange(len(ends)), [len(e) for e in ends])
        at_T = np.concatenate(ends)
        rows = np.asarray(batch.rows)[at_B]
        target = batch.input_ids[torch.from_numpy(at_B), torch.from_numpy(at_T)]
        return rows, torch.from_numpy(np.stack([at_B, at_T - 1], 1)), target

    def _variants(self, batch: Batch, clean_BTV: Tensor, hookpoint: str, changes: Sequence[Change]) -> Iterator[Tensor]:
        yield clean_BTV
        for change in changes:
            with apply_at(self.model, {hookpoint: change}):
                logits_BTV = self.model.logits(batch, precision=self.precision)
            yield logits_BTV

    def _check(self, ce_M: Floats, rows_M: NDArray[np.int64], hookpoint: str) -> None:
        bad = np.flatnonzero(~np.isfinite(ce_M))
        if bad.size:
            text = self.texts[rows_M[bad[0]]].text_id
            raise DataError("the loss is not a finite number", where=f"{hookpoint}, text {text}",
                            fix="Read the model in float32")  # fmt: skip


def _compare(clean_BTV: Tensor, other_BTV: Tensor, at_M2: Tensor, target_M: Tensor) -> tuple[Floats, Floats]:
    """Cross-entropy of `other` and KL(clean ‖ other) of each prediction, [M] each, in nats."""
    ce, kl = [], []
    at_M2, target_M = at_M2.to(clean_BTV.device), target_M.to(clean_BTV.device)
    for at, target in zip(at_M2.split(ROWS), target_M.split(ROWS), strict=True):
        log_p = clean_BTV[at[:, 0], at[:, 1]].float().log_softmax(-1)
        log_q = other_BTV[at[:, 0], at[:, 1]].float().log_softmax(-1)
        ce.append(-log_q.gather(1, target[:, None])[:, 0])
        p = log_p.exp()
        kl.append(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))  # a token ruled out adds 0, not 0 · ∞
    return torch.cat(ce).double().cpu().numpy(), torch.cat(kl).double().cpu().numpy()


def _summary(hookpoint: str, sums: Floats, codes: NDArray[np.int64], n_replaced: int, seed: int) -> LossRecovered:
    """`sums` [8, texts]: tokens, cross-entropy clean, SAE, zero, mean, KL of SAE, zero, mean."""
    tokens, clean, sae, zero, mean, kl_sae, kl_zero, kl_mean = sums
    nothing = np.zeros_like(clean)

    def per_token(total: Floats) -> Estimate:
        return bootstrap_of_sums(lambda s: float(s[0] / s[1]), np.stack([total, tokens]), codes, seed=seed)

    def recovered(worst: Floats, got: Floats, best: Floats, what: str) -> Estimate:
        def share(s: Floats) -> float | None:
            cost = (s[0] - s[2]) / s[3]
            return float((s[0] - s[1]) / s[3] / cost) if cost > LEAST else None

        why = f"{what} ablation costs nothing"
        return bootstrap_of_sums(share, np.stack([worst, got, best, tokens]), codes, seed=seed, undefined=why)

    return LossRecovered(
        hookpoint=hookpoint, ce_clean=per_token(clean), ce_sae=per_token(sae), ce_zero=per_token(zero),
        ce_mean=per_token(mean), ce_increase=per_token(sae - clean),
        ce_recovered=recovered(zero, sae, clean, "zero"), ce_recovered_from_mean=recovered(mean, sae, clean, "mean"),
        kl_sae=per_token(kl_sae), kl_zero=per_token(kl_zero), kl_mean=per_token(kl_mean),
        kl_recovered=recovered(kl_zero, kl_sae, nothing, "zero"),
        kl_recovered_from_mean=recovered(kl_mean, kl_sae, nothing, "mean"),
        n_texts=len(tokens), n_tokens=int(tokens.sum()), n_replaced=n_replaced,
    )  # fmt: skip


def _check_causal(model: LanguageModel, text: Rendered, precision: Precision) -> None:
    """Raise `ModelError` where the last token of a text changes predictions before it: their loss means nothing."""
    ids = text.input_ids.copy()
    ids[-1] = (int(ids[-1]) + 1) % int(model.config.vocab_size)
    batch = collate([text, replace(text, input_ids=ids)], int(model.config.pad_token_id))
    first, second = model.logits(batch, precision=precision)[:, :-1].float()
    if float((first - second).abs().max()) > 0.01 * float(first.std()):
        raise ModelError("tokens see those that follow them: this is no causal language model", where=model.name,
                         fix="Give a causal language model, or a reward model")  # fmt: skip
