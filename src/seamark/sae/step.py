"""One training step of an autoencoder: loss and exact gradients that touch the active latents only.

The encoder's product is dense, because selection must see every latent. All else is sparse: the decoder sums the active
rows of a position, and the backward pass visits the active (position, latent) entries, sorted by latent:

    gradient of an activation    a dot product per entry (sampled product, CSR by latent)
    gradient of a weight row     a weighted sum of the positions where its latent is active

No tensor of entries × d_in exists, and no gradient is computed for a latent that was not selected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seamark.sae.config import FitConfig, SAEConfig
from seamark.sae.encoder import Active, Encoder, keep_entries
from seamark.sae.ops import decode_rows, sampled_products, sum_rows, sum_weights
from seamark.sae.parallel import Ranks

SAMPLE_ROWS = 32
SAMPLE_SURPLUS = 1.5
DENSE_BYTES = 16 << 20
"""Size of the temporaries of dense products."""


class Weights(NamedTuple):
    """Parameters or their gradients: W_enc and W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in], and for JumpReLU the
    logarithm of the thresholds [d_sae] (elsewhere None)."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    log_threshold: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [t for t in self if t is not None]


class Problem(NamedTuple):
    """What a step minimises."""

    config: SAEConfig
    how: FitConfig
    sparsity: float
    """λ now."""
    n: int
    """Positions of the whole batch, on all ranks."""
    dead: Tensor | None = None
    """int64: latents that AuxK revives; None or empty: none."""
    ranks: Ranks = Ranks()


class Outcome(NamedTuple):
    """What a step found on this rank's positions; `loss` sums to the batch's loss over ranks."""

    loss: Tensor
    """[]"""
    gradients: Weights
    squares: Tensor | None
    """[]: squared norm of W_enc's and W_dec's gradients together; None where AuxK added to them."""
    fired: Tensor
    """bool [d_sae]: latents with z > 0 somewhere."""
    active: int
    """Entries with z ≠ 0."""
    visited: int
    """Entries the backward pass touched (more than `active` for JumpReLU: its window)."""
    cut: Tensor | None
    """[]: smallest kept pre-activation of a `batch_topk` batch."""
    error: Tensor
    """x̂ − x, [n, d_in]."""


@torch.no_grad()
def loss_and_gradients(w: Weights, x_ND: Tensor, encoder: Encoder, p: Problem, out: Weights | None = None) -> Outcome:
    """The loss of a batch and its exact gradients.

    Args:
        w: the parameters (`encoder` holds the same W_enc and b_enc).
        x_ND: [n, d_in], normalised. With the relative loss a position with ‖x‖ = 0 counts as 0.
        p: the problem.
        out: where W_enc's and W_dec's gradients go; new tensors if None.
    """
    centred_ND = x_ND - w.b_dec if p.config.subtract_b_dec else x_ND
    active, cut = select(w, centred_ND, encoder, p)
    entries, theta = active.entries, _threshold(w, p)
    z, _ = _gate(active.pre, p.config, None if theta is None else theta[active.indices])
    theta_m = None if theta is None else theta[entries.latents]
    z_m, open_m = _gate(active.pre_by_latent, p.config, theta_m)

    error_ND = decode_rows(active.indices, z, w.W_dec, active.bags).add_(w.b_dec).sub_(x_ND)
    weight_N = position_weights(x_ND, p)
    loss = (error_ND.square().sum(1) * weight_N).sum()
    G_ND = error_ND * (2.0 * weight_N)[:, None]  # gradient of x̂
    dz_m = sampled_products(entries, w.W_dec, G_ND)
    finish = Finish(w.W_dec, sum_weights(entries, z_m * dz_m) if p.how.remove_parallel else None)

    dlog_F, penalty, dpre_m = _penalties(active, z_m, dz_m, open_m, theta, theta_m, p)
    db_enc = sum_weights(entries, dpre_m)
    gradients = Weights(
        W_enc=sum_rows(entries, dpre_m, centred_ND, out.W_enc if out else None, finish.encoder),
        W_dec=sum_rows(entries, z_m, G_ND, out.W_dec if out else None, finish.decoder),
        b_enc=db_enc,
        b_dec=_through_b_dec(G_ND, db_enc, w, p.config),
        log_threshold=dlog_F,
    )
    fired = sum_weights(entries, (z_m > 0).to(z_m.dtype)) > 0
    loss = loss + penalty
    if p.dead is not None and len(p.dead):
        loss = loss + auxiliary(w, centred_ND, error_ND, weight_N, p, gradients)
        return Outcome(loss, gradients, None, fired, int((z_m != 0).sum()), z_m.shape[0], cut, error_ND)
    squares = finish.squares
    return Outcome(loss, gradients, squares, fired, int((z_m != 0).sum()), z_m.shape[0], cut, error_ND)


class Finish:
    """What is done with a tile of a weight gradient while it is in the cache: take from W_dec's rows what points along
    them, and sum the squares for the norm.

    Args:
        W_dec_FD: [d_sae, d_in], rows of unit norm.
        along_F: [d_sae], W_dec · its gradient, row by row; None: leave it in.
    """

    def __init__(self, W_dec_FD: Tensor, along_F: Tensor | None) -> None:
        self.W_dec, self.along = W_dec_FD, along_F
        self._squares: list[Tensor] = []

    def encoder(self, tile: Tensor, columns: slice) -> None:
        self._squares.append(torch.linalg.vector_norm(tile))

    def decoder(self, tile: Tensor, columns: slice) -> None:
        if self.along is not None:
            tile.addcmul_(self.W_dec[:, columns], self.along[:, None], value=-1.0)
        self._squares.append(torch.linalg.vector_norm(tile))

    @property
    def squares(self) -> Tensor:
        return torch.stack(self._squares).square_().sum()


def position_weights(x_ND: Tensor, p: Problem) -> Tensor:
    """[n]: weight of each position's squared error in the loss."""
    if p.how.loss == "squared":
        return x_ND.new_full((x_ND.shape[0],), 1.0 / p.n)
    power_N = torch.linalg.vector_norm(x_ND, dim=1).square_()
    return torch.where(power_N > 0, 1.0 / power_N, torch.zeros_like(power_N)) / p.n


def select(w: Weights, centred_ND: Tensor, encoder: Encoder, p: Problem) -> tuple[Active, Tensor | None]:
    """The entries a step visits, and `batch_topk`'s cut."""
    k = p.config.fixed_k
    if k is not None:
        return encoder.top_k(centred_ND, k), None
    if p.config.activation == "batch_topk":
        return _batch_top_k(encoder, centred_ND, p)
    theta = _threshold(w, p)
    floor = w.b_enc.new_zeros(1) if theta is None else theta - p.how.bandwidth / 2
    return encoder.above(centred_ND, floor), None


def _batch_top_k(encoder: Encoder, centred_ND: Tensor, p: Problem) -> tuple[Active, Tensor]:
    """The n·k largest positive pre-activations of the whole batch (arXiv 2412.06410), exactly.

    A sample of positions says where the cut will be about; everything above a lower floor is taken, and the floor is
    lowered until it holds enough. Only then is the cut known.
    """
    k, n = p.config.k or 0, centred_ND.shape[0]
    wanted = k * p.n
    sample = torch.addmm(encoder.b_enc, centred_ND[:: max(1, n // SAMPLE_ROWS)], encoder.W_enc.T).flatten()
    share = SAMPLE_SURPLUS * k / encoder.W_enc.shape[0]
    while True:
        floor = _exceeded_by(sample, share).clamp_min_(0.0)
        p.ranks.min_(floor)
        active = encoder.above(centred_ND, floor[None])
        values = p.ranks.gather(active.pre)
        if values.shape[0] >= wanted or float(floor) == 0.0:
            break
        share *= 2.0
    if values.shape[0] <= wanted:
        return active, values.min() if len(values) else values.new_zeros(())
    cut = values.kthvalue(values.shape[0] - wanted + 1).values
    assert active.bags is not None  # noqa: S101
    position = torch.repeat_interleave(torch.arange(n, device=cut.device), active.bags.diff())
    return keep_entries(active, position, active.pre >= cut, active.pre_by_latent >= cut, n), cut


def _exceeded_by(values: Tensor, share: float) -> Tensor:
    """[]: the value that about `share` of `values` exceed; 0 where all may."""
    rank = max(1, round(share * values.shape[0]))
    return values.kthvalue(values.shape[0] - rank + 1).values if rank <= values.shape[0] else values.new_zeros(())


def _threshold(w: Weights, p: Problem) -> Tensor | None:
    return None if w.log_threshold is None or p.config.activation != "jumprelu" else w.log_threshold.exp()


def _gate(pre: Tensor, config: SAEConfig, theta: Tensor | None) -> tuple[Tensor, Tensor]:
    """(z, dz/dpre: 1 where open) of pre-activations."""
    if config.activation == "topk":
        return pre, torch.ones_like(pre)
    opened = (pre > (0.0 if theta is None else theta)).to(pre.dtype)
    return pre * opened, opened


def _penalties(
    active: Active, z_m: Tensor, dz_m: Tensor, open_m: Tensor, theta: Tensor | None, theta_m: Tensor | None, p: Problem
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(gradient of log θ, loss of the sparsity term, gradients of the pre-activations)."""
    none = z_m.new_zeros(())
    if p.config.activation == "relu":
        return None, p.sparsity * z_m.sum() / p.n, (dz_m + p.sparsity / p.n) * open_m
    if theta is None or theta_m is None:
        return None, none, dz_m * open_m
    # Straight through the step at θ: a rectangle of width ε around it (arXiv 2407.14435, eq. 11 and 12).
    window = ((active.pre_by_latent - theta_m).abs() < p.how.bandwidth / 2).to(z_m.dtype) / p.how.bandwidth
    d_theta = -window * (theta_m * dz_m + p.sparsity / p.n)
    d_log = sum_weights(active.entries, d_theta).mul_(theta)
    return d_log, p.sparsity * open_m.sum() / p.n, dz_m * open_m


def _through_b_dec(G_ND: Tensor, db_enc: Tensor, w: Weights, config: SAEConfig) -> Tensor:
    """Gradient of b_dec: through the output, and through x − b_dec."""
    return G_ND.sum(0) - _rows_times(db_enc, w.W_enc) if config.subtract_b_dec else G_ND.sum(0)


def _rows_times(v_F: Tensor, W_FD: Tensor) -> Tensor:
    """v W, [d_in]; cut into four products, because a single one runs on one core."""
    parts = next(n for n in (4, 2, 1) if W_FD.shape[0] % n == 0)
    return torch.bmm(v_F.view(parts, 1, -1), W_FD.view(parts, -1, W_FD.shape[1])).sum(0)[0]


def auxiliary(
    w: Weights,
    centred_ND: Tensor,
    error_ND: Tensor,
    weight_N: Tensor,
    p: Problem,
    gradients: Weights,
) -> Tensor:
    """AuxK (arXiv 2406.04093): dead latents learn what the others left over; adds to `gradients`, returns its loss.

    Only the dead latents' rows take part, as a dense problem of [n, dead] in chunks of positions.
    """
    dead = p.dead
    assert dead is not None  # noqa: S101
    k = min(p.how.aux_k or max(1, p.config.d_in // 2), len(dead))
    W, V, b = w.W_enc[dead], w.W_dec[dead], w.b_enc[dead]
    dW, dV, db = torch.zeros_like(W), torch.zeros_like(V), torch.zeros_like(b)
    loss = error_ND.new_zeros(())
    rows = max(1, DENSE_BYTES // (4 * len(dead)))
    for x, error, weight in zip(centred_ND.split(rows), error_ND.split(rows), weight_N.split(rows), strict=True):
        z = torch.addmm(b, x, W.T).relu_()
        if k < len(dead):
            z = torch.zeros_like(z).scatter_(1, *_top(z, k))
        left = torch.addmm(error, z, V)  # ê − e, with e = x − x̂
        loss += (left.square().sum(1) * weight).sum() * p.how.aux_coefficient
        G = left.mul_((2.0 * p.how.aux_coefficient * weight)[:, None])
        dV.addmm_(z.T, G)
        dpre = (G @ V.T).mul_(z > 0)
        dW.addmm_(dpre.T, x)
        db += dpre.sum(0)
    if p.how.remove_parallel:
        dV.addcmul_(V, (V * dV).sum(1, keepdim=True), value=-1.0)
    gradients.W_enc.index_add_(0, dead, dW)
    gradients.W_dec.index_add_(0, dead, dV)
    gradients.b_enc.index_add_(0, dead, db)
    if p.config.subtract_b_dec:
        gradients.b_dec.sub_(db @ W)
    return loss


def _top(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = z.topk(k, dim=1, sorted=False)
    return indices, values


@torch.no_grad()
def dense_loss_and_gradients(w: Weights, x_ND: Tensor, p: Problem, out: Weights | None = None) -> Outcome:
    """The same for `relu` and `jumprelu` by dense products in chunks of positions: for the first steps, when thousands
    of latents fire at a position and visiting entries one by one costs more than multiplying."""
    theta = _threshold(w, p)
    floor = w.b_enc.new_zeros(1) if theta is None else theta
    gW_enc = out.W_enc.zero_() if out else torch.zeros_like(w.W_enc)
    gW_dec = out.W_dec.zero_() if out else torch.zeros_like(w.W_dec)
    g = Weights(gW_enc, gW_dec, torch.zeros_like(w.b_enc), torch.zeros_like(w.b_dec),
                None if theta is None else torch.zeros_like(theta))  # fmt: skip
    along_F, fired = torch.zeros_like(w.b_enc), torch.zeros_like(w.b_enc, dtype=torch.bool)
    loss, error_ND, active, visited = x_ND.new_zeros(()), torch.empty_like(x_ND), 0, 0
    centred_ND = x_ND - w.b_dec if p.config.subtract_b_dec else x_ND
    weight_N = position_weights(x_ND, p)
    rows = max(1, DENSE_BYTES // (4 * w.W_enc.shape[0]))
    for start in range(0, x_ND.shape[0], rows):
        part = slice(start, start + rows)
        pre = torch.addmm(w.b_enc, centred_ND[part], w.W_enc.T)
        opened = pre > floor
        z = pre * opened
        error = torch.addmm(w.b_dec, z, w.W_dec).sub_(x_ND[part])
        error_ND[part] = error
        loss += (error.square().sum(1) * weight_N[part]).sum()
        G = error.mul_((2.0 * weight_N[part])[:, None])
        dz = G @ w.W_dec.T
        along_F += (z * dz).sum(0)
        g.W_dec.addmm_(z.T, G)
        if g.log_threshold is not None:
            window = ((pre - floor).abs() < p.how.bandwidth / 2).to(pre.dtype) / p.how.bandwidth
            g.log_threshold.sub_((window * (floor * dz + p.sparsity / p.n)).sum(0) * floor)
            loss += p.sparsity * int(opened.sum()) / p.n
            visited += int((pre > floor - p.how.bandwidth / 2).sum())
        else:
            dz += p.sparsity / p.n
            loss += p.sparsity * z.sum() / p.n
        dpre = dz.mul_(opened)
        g.W_enc.addmm_(dpre.T, centred_ND[part])
        g.b_enc.add_(dpre.sum(0))
        g.b_dec.add_(G.sum(0))
        fired |= opened.any(0)
        active += int(opened.sum())
    if p.config.subtract_b_dec:
        g.b_dec.sub_(_rows_times(g.b_enc, w.W_enc))
    finish = Finish(w.W_dec, along_F if p.how.remove_parallel else None)
    finish.encoder(g.W_enc, slice(None))
    finish.decoder(g.W_dec, slice(None))
    squares = finish.squares if p.dead is None or not len(p.dead) else None
    if p.dead is not None and len(p.dead):
        loss = loss + auxiliary(w, centred_ND, error_ND, weight_N, p, g)
    return Outcome(loss, g, squares, fired, active, max(active, visited), None, error_ND)
