"""What a step computes, straight from the papers: dense latents and autograd. Slow, and the measure of the fast one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seamark.sae.step import Problem, Weights


class Jump(torch.autograd.Function):
    """JumpReLU with the straight-through gradient of arXiv 2407.14435, eq. 11."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        window = ((pre - theta).abs() < ctx.width / 2) / ctx.width
        return grad * (pre > theta), (-theta * window * grad).sum(0), None


class Step(torch.autograd.Function):
    """The step function of L0, eq. 12."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        pre, theta = ctx.saved_tensors
        window = ((pre - theta).abs() < ctx.width / 2) / ctx.width
        return None, (-window * grad).sum(0), None


def dense_loss(w: Weights, x: Tensor, p: Problem) -> Tensor:
    """The loss of a batch [n, d_in] by its definition; differentiable in `w`."""
    pre = (x - w.b_dec * p.config.subtract_b_dec) @ w.W_enc.T + w.b_enc
    k, penalty = p.config.k or 0, torch.zeros((), dtype=x.dtype)
    match p.config.activation:
        case "topk" | "topk_relu":
            z = pre * torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
            z = z.relu() if p.config.activation == "topk_relu" else z
        case "batch_topk":
            positive = pre.relu()
            chosen = positive.flatten().topk(min(len(x) * k, positive.numel())).indices
            z = positive * torch.zeros_like(positive).flatten().scatter_(0, chosen, 1.0).view_as(pre)
        case "jumprelu":
            assert w.log_threshold is not None
            theta = w.log_threshold.exp()
            z = Jump.apply(pre, theta, p.how.bandwidth)
            penalty = p.sparsity * Step.apply(pre, theta, p.how.bandwidth).sum(1).mean()
        case _:
            z = pre.relu()
            penalty = p.sparsity * z.sum(1).mean()
    error = (z @ w.W_dec + w.b_dec - x).square().sum(1)
    if p.how.loss == "relative":
        error = error / x.square().sum(1)
    loss = error.mean() + penalty
    return loss if p.dead is None else loss + auxiliary_loss(w, x, x - (z @ w.W_dec + w.b_dec), p)


def auxiliary_loss(w: Weights, x: Tensor, left: Tensor, p: Problem) -> Tensor:
    """AuxK of arXiv 2406.04093 with the residual as a constant."""
    assert p.dead is not None
    pre = ((x - w.b_dec * p.config.subtract_b_dec) @ w.W_enc[p.dead].T + w.b_enc[p.dead]).relu()
    k = min(p.how.aux_k or p.config.d_in // 2, len(p.dead))
    z = pre * torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    error = (z @ w.W_dec[p.dead] - left.detach()).square().sum(1)
    if p.how.loss == "relative":
        error = error / x.square().sum(1)
    return p.how.aux_coefficient * error.mean()
