"""Making a guard out of a detector: exact or of few latents, with its agreement and its latency measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.diagnose.guard import (
    POSITIONS,
    Agreement,
    FewLatents,
    Guard,
    GuardAbout,
    Latency,
    few_pre_activations,
    make_exact,
)
from seamark.diagnose.probes import DetectorName, Fitted, RiskInputs
from seamark.diagnose.risk import RiskConfig, final_fit
from seamark.diagnose.risk_metrics import auroc, estimates
from seamark.diagnose.risk_texts import labels_of
from seamark.errors import ConfigError
from seamark.features.contexts import read_positions
from seamark.features.gather import gather_by
from seamark.features.scan import check_suite
from seamark.model.batching import collate, plan_batches
from seamark.model.loading import HookedModel
from seamark.model.reading import Reader
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.rendering import Rendered

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
GATE_TEXTS, AGREEMENT_TEXTS, LATENCY_TEXTS = 512, 512, 64
ROUNDS = 15
BATCH_TOKENS = 2048


def export_guard(
    x: RiskInputs, domain: str, model: HookedModel, sae: SparseAutoencoder, *, sae_id: str, few: bool = False,
    detector: DetectorName | None = None, config: RiskConfig | None = None, max_length: int | None = None,
    rounds: int = ROUNDS,
) -> Guard:  # fmt: skip
    """Fit a detector on all texts of a domain and make a guard of it.

    Agreement is measured on texts of the part that chose settings and threshold, latency on some of them.

    Args:
        x: what detectors read, of `risk_inputs` of a scan with this model and autoencoder.
        domain: the label to find.
        model: the model.
        sae: the autoencoder.
        sae_id: its name.
        few: encode the guard's latents alone, without TopK.
        detector: one that is linear in latents; `sparse_max`, of few latents `sparse_few`.
        config: as of `risk`.
        max_length: most tokens of a text, as in the scan.
        rounds: of the latency's measurement.

    Raises:
        ConfigError: the detector is no guard; the autoencoder is of another model.
        DataError: too few texts of a class.
    """
    config, chosen = config or RiskConfig(), detector or ("sparse_few" if few else "sparse_max")
    check_suite(model, {sae_id: sae})
    fitted, check = final_fit(x, domain, chosen, config)
    if fitted.weights is None:
        raise ConfigError(f"{chosen} is not linear in latents", where="detector",
                          fix="Take single, sparse_max, sparse_mean or sparse_few")  # fmt: skip
    guard = make_exact(model, sae, fitted.weights, sae_id=sae_id, domain=domain, detector=chosen,
                       calibration=fitted.calibration, threshold=fitted.threshold, max_length=max_length)  # fmt: skip
    y = labels_of(x.texts, domain, config.leave_out)
    known = np.setdiff1d(np.flatnonzero(y >= 0), check)
    if few:
        guard = few_guard(guard, _rendered(guard, x, _some(known, y, GATE_TEXTS, config.seed)))
    judged = _some(check, y, AGREEMENT_TEXTS, config.seed)
    rendered = _rendered(guard, x, judged)
    about = guard.about.model_copy(update={
        "labelled": int((y >= 0).sum()), "positives": int((y == 1).sum()),
        "agreement": _agreement(guard, fitted, rendered, judged, y, config),
        "latency": measure_latency(guard, sae, rendered[:LATENCY_TEXTS], [x.texts[i].text for i in judged],
                                   rounds=rounds),
    })  # fmt: skip
    return Guard(about, guard.weights, guard.encoder, model)


def few_guard(guard: Guard, texts: Sequence[Rendered]) -> Guard:
    """The guard that encodes its latents alone, with the gate of each that gives TopK's firings best on some texts."""
    sae = guard.encoder
    assert isinstance(sae, SparseAutoencoder)  # noqa: S101 - for the type checker
    latents = torch.from_numpy(guard.weights.latents)
    columns = {"W_enc": sae.W_enc.detach()[:, latents], "b_enc": sae.b_enc.detach()[latents],
               "b_dec": sae.b_dec.detach()}  # fmt: skip
    pre, fires = [], []
    for h_ND in _activations(guard, texts):
        found = sae.encode(h_ND)
        pre.append(few_pre_activations(sae.config, columns, h_ND).cpu().numpy())
        fires.append(_firing(found.indices, found.values, found.bounds, latents, sae.config.d_sae))
    gate = gates(np.concatenate(pre), np.concatenate(fires))
    arrays = {name: np.ascontiguousarray(t.cpu().numpy()) for name, t in columns.items()}
    about = GuardAbout(**(dict(guard.about) | {"kind": "few"}))
    return Guard(about, guard.weights, FewLatents(**arrays, gate=gate), guard.model)


def gates(pre: NDArray[np.float32], fires: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The gate of each latent with the fewest positions judged otherwise than TopK does, [latents].

    Args:
        pre: pre-activations [positions, latents].
        fires: where each is among the k largest, and positive.
    """
    found = np.zeros(pre.shape[1], np.float32)
    for i in range(pre.shape[1]):
        order = np.argsort(-pre[:, i], kind="stable")
        value, fired = pre[order, i], fires[order, i]
        gained = np.concatenate([[0], np.cumsum(np.where(fired, 1, -1))])
        gained[1:][np.append(value[1:] == value[:-1], False)] = -len(value)  # equal ones cannot be parted
        n = int(np.argmax(gained))
        above = float(value[n - 1]) if n else float(np.nextafter(value[0], np.float32(np.inf)))
        found[i] = max((above + float(value[n])) / 2, 0.0) if 0 < n < len(value) else max(above, 0.0)
    return found


def measure_latency(
    guard: Guard, sae: SparseAutoencoder, texts: Sequence[Rendered], plain: Sequence[str], rounds: int = ROUNDS
) -> Latency:  # fmt: skip
    """The guard against its parts on the same texts and batches, in turn, after a round that does not count."""
    model, hookpoint = guard.model, sae.config.hookpoint
    batches = plan_batches([len(text) for text in texts], BATCH_TOKENS)
    at = [read_positions(text, POSITIONS)[0] for text in texts]
    sae = sae.to(model.device)
    inputs = [_encoder_input(sae, h) for h in _activations(guard, texts)]
    weight, bias = sae.W_enc.detach(), sae.b_enc.detach()

    def forward() -> None:
        with Reader(model, [hookpoint]) as reader:
            for rows in batches:
                reader(collate(texts, int(model.config.pad_token_id), rows=rows))

    def product() -> None:
        with torch.inference_mode():
            for x_ND in inputs:
                torch.addmm(bias, x_ND, weight)

    def score() -> None:
        guard.score_rendered(texts, BATCH_TOKENS)

    named = {"guard": score, "forward": forward, "encoder_product": product}
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(rounds + 1):
        for name in list(named)[:: 1 if turn % 2 else -1]:
            spent = _timed(named[name], model.device)
            if turn:
                seconds[name].append(spent)
    ratios = np.asarray(seconds["guard"]) / (np.asarray(seconds["forward"]) + np.asarray(seconds["encoder_product"]))
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    rendering = _timed(lambda: guard.render(list(plain[: len(texts)])), model.device)
    medians = {name: float(np.median(found)) for name, found in seconds.items()}
    ratio = Estimate(value=float(middle), low=float(low), high=float(high), n=rounds)
    return Latency(texts=len(texts), tokens=sum(map(len, at)), rounds=rounds, device=model.device.type,
                   threads=torch.get_num_threads(), rendering=rendering, ratio=ratio, **medians)  # fmt: skip


@torch.inference_mode()
def _encoder_input(sae: SparseAutoencoder, h_ND: Tensor) -> Tensor:
    x_ND = sae.preprocess(h_ND)[0]
    return x_ND - sae.b_dec if sae.config.subtract_b_dec else x_ND


def _timed(work: Callable[[], object], device: torch.device) -> float:
    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    settle()
    begin = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - begin


def _activations(guard: Guard, texts: Sequence[Rendered]) -> list[Tensor]:
    """[positions, d_in] of each batch of the texts."""
    hookpoint = guard.about.sae_config.hookpoint
    at = [read_positions(text, POSITIONS)[0] for text in texts]
    with Reader(guard.model, [hookpoint]) as reader:
        return [gather_by(reader, texts, rows, [at[row] for row in rows]).activations[hookpoint]
                for rows in plan_batches([len(text) for text in texts], BATCH_TOKENS)]  # fmt: skip


def _firing(indices: Tensor, values: Tensor, bounds: Tensor, latents: Tensor, d_sae: int) -> NDArray[np.bool_]:
    """[positions, latents] where each of some latents fires."""
    n = len(bounds) - 1
    place = torch.full((d_sae,), -1, dtype=torch.int64)
    place[latents] = torch.arange(len(latents))
    row = torch.repeat_interleave(torch.arange(n), torch.diff(bounds.cpu()))
    at, value = place[indices.reshape(-1).long().cpu()], values.reshape(-1).cpu()
    mine = (at >= 0) & (value > 0)
    found = np.zeros((n, len(latents)), np.bool_)
    found[row[mine].numpy(), at[mine].numpy()] = True
    return found


def _some(rows: Integers, y: NDArray[np.int8], n: int, seed: int) -> Integers:
    """At most n rows, half of them of the domain as far as there are, by turns."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(rows[y[rows] == label]) for label in (1, 0)]
    positives = sides[0][: max(n // 2, n - len(sides[1]))]
    chosen = np.concatenate([positives, sides[1][: n - len(positives)]])
    mixed: Integers = rng.permutation(chosen)
    return mixed


def _rendered(guard: Guard, x: RiskInputs, rows: Integers) -> list[Rendered]:
    """As the scan had read them: what is too long loses its beginning."""
    renderer = guard.model.renderer(guard.about.max_length)
    return [renderer.render_text(x.texts[row].text, x.texts[row].id) for row in rows.tolist()]


def _agreement(
    guard: Guard, fitted: Fitted, texts: Sequence[Rendered], rows: Integers, y: NDArray[np.int8], config: RiskConfig
) -> Agreement:  # fmt: skip
    mine, theirs = guard.score_rendered(texts), fitted.probability(rows)
    labels, none = y[rows].astype(np.int64), np.zeros(len(rows), np.int64)
    same = ((mine >= fitted.threshold) == (theirs >= fitted.threshold)).astype(np.float64)

    def pearson(w: Floats) -> Floats:
        total = w.sum(1)
        a, b = w @ mine / total, w @ theirs / total
        spread = (w @ mine**2 / total - a**2) * (w @ theirs**2 / total - b**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.where(spread > 0, (w @ (mine * theirs) / total - a * b) / np.sqrt(spread), np.nan)
        return found

    found = estimates(
        {"pearson": pearson, "same_decision": lambda w: w @ same / w.sum(1), "auroc_guard": auroc(labels, mine, none),
         "auroc_risk": auroc(labels, theirs, none)},
        np.arange(len(rows)), draws=config.draws, seed=config.seed,
    )  # fmt: skip
    return Agreement(texts=len(rows), largest_difference=float(np.abs(mine - theirs).max()), **found)
