"""Training a reward model on preference pairs (Bradley-Terry, through TRL's `RewardTrainer`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from seamark.errors import ConfigError, DataError
from seamark.model.hookpoints import find_family, modules_after_blocks
from seamark.model.loading import Attention, RewardModel
from seamark.model.order import TokenPair, training_order
from seamark.model.precision import Precision, resolve_precision
from seamark.model.skipping import BlockCache
from seamark.model.trainer import global_state_kept, run_trainer
from seamark.run import digest, disk_errors, write_atomic, write_json
from seamark.text.pairs import Pairs

REPORT = "training.json"


class RewardTraining(BaseModel):
    """How a reward model is trained. Defaults are SAFER's (arXiv 2507.00665) but for the length.

    Dropout is 0 unless asked for: on CPUs it sends attention down a slow path that costs more than the rest
    of the step, and one or two epochs of Bradley-Terry training do not need it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(2e-5, gt=0)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(128, ge=1)
    """Pairs in an optimiser step."""
    accumulate: int = Field(1, ge=1)
    """Forward passes a step is split into; must divide `batch_size`."""
    max_length: int | None = Field(1024, ge=8)
    """Tokens of a text; longer ones lose their left end. Never more than the model can take (None)."""
    too_long: Literal["truncate", "drop"] = "truncate"
    """"drop" leaves pairs with a text over `max_length` out and lists them in the report."""
    weight_decay: float = Field(1e-3, ge=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)
    trainable_blocks: int | None = Field(None, ge=0)
    """Only the last n blocks, what follows them and the head are trained; None: everything."""
    precision: Precision = "auto"
    """"bf16" trains under autocast (weights stay float32); "auto" does where the machine is fast at it."""
    attention: Attention | None = None
    """transformers' attention while training; on CPUs "eager" is faster for texts of up to ~150 tokens."""
    dropout: float = Field(0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False
    """Trade time for memory: recompute activations in the backward pass."""
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    """CPU threads while training; None: as they are. Results depend on it in the last bits."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Write a checkpoint every so many steps, from which a killed run goes on to the same bytes."""


class TrainingReport(BaseModel):
    """What happened in training. Equal runs give equal reports, `seconds` aside."""

    model_config = ConfigDict(frozen=True)

    steps: int
    losses: tuple[float, ...]
    """Mean loss of each step, in nats."""
    accuracies: tuple[float, ...]
    """Share of each step's pairs ranked right before the step."""
    n_pairs: int
    """Pairs trained on."""
    tokens: int
    """Tokens seen, all epochs, without padding."""
    padded_tokens: int
    """The same with padding."""
    truncated_texts: int
    dropped_ids: tuple[str, ...]
    """Pairs left out because a text was too long; TRL would drop these without a word."""
    trainable_parameters: int
    precision: Literal["fp32", "bf16"]
    attention: str
    threads: int
    device: str
    seconds: float


def train_reward_model(
    base: str,
    pairs: Pairs,
    config: RewardTraining,
    out: Path | None = None,
    *,
    checkpoints: Path | None = None,
    lower: BlockCache | None = None,
    progress: bool = True,
    title: str = "reward model",
) -> tuple[RewardModel, TrainingReport]:
    """Train a reward model from a base with a fresh scalar head.

    The data order is decided by the pairs' ids and the seed: neither the order of the file nor a flipped
    label moves a pair to another batch. Equal base, pairs, config, threads and machine give equal weights,
    byte for byte. The global random state and the number of threads are put back afterwards.

    Args:
        base: an encoder, a causal LM or a reward model to go on with; a folder, a Hub name or
            `DEFAULT_MODEL`.
        pairs: what to train on.
        config: how.
        out: folder for the model in the Hub's layout and the report (`training.json`); not written without.
        checkpoints: folder for checkpoints (with `config.checkpoint_steps`); `out/.checkpoints` if absent.
            It is removed at the end; one that belongs to other data or another config is thrown away at the
            start.
        lower: what the frozen lower blocks give for these texts, read once for many trainings.
        progress: show progress on stderr.
        title: what to call the training there.

    Returns:
        The trained model, float32, in eval mode, and the report.

    Raises:
        DataError: nothing to train on.
        ModelError: the base cannot be loaded, or a loss is not finite (it names the step).
        ConfigError: options that do not fit together.
    """
    if config.batch_size % config.accumulate:
        raise ConfigError(f"accumulate {config.accumulate} does not divide batch_size {config.batch_size}")
    start = time.monotonic()
    with _threads(config.threads), global_state_kept(config.seed):
        model = RewardModel.from_base(base, seed=config.seed, attention=config.attention, dropout=config.dropout)
        rows, truncated, dropped = _tokenise(model, pairs, config)
        order = training_order(rows, config.epochs, config.batch_size, config.seed)
        precision = resolve_precision(config.precision, model.device.type)
        folder = _checkpoint_folder(model, order, config, precision, out, checkpoints)
        skipping = _skipping(model, lower, config)
        with trainable_part(model.hf, config.trainable_blocks) as n_trainable, skipping:
            log = run_trainer(model, order, config, precision, folder, title if progress else None)
    report = TrainingReport(
        steps=len(log.losses), losses=tuple(log.losses), accuracies=tuple(log.accuracies), n_pairs=len(rows),
        tokens=log.tokens, padded_tokens=log.padded_tokens, truncated_texts=truncated, dropped_ids=tuple(dropped),
        trainable_parameters=n_trainable, precision=precision, attention=model.hf.config._attn_implementation,
        threads=config.threads or torch.get_num_threads(), device=model.device.type,
        seconds=time.monotonic() - start,
    )  # fmt: skip
    if out is not None:
        model.save_pretrained(out)
        write_json(out / REPORT, report.model_dump(exclude={"seconds"}))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return model, report


def _skipping(
    model: RewardModel, lower: BlockCache | None, config: RewardTraining
) -> contextlib.AbstractContextManager[None]:
    if lower is None:
        return contextlib.nullcontext()
    frozen = len(find_family(model.hf)[1]) - (config.trainable_blocks or 0)
    if config.trainable_blocks is None or lower.n_blocks > frozen:
        raise ConfigError(f"{lower.n_blocks} blocks are to be skipped, but training changes some of them",
                          fix="Set trainable_blocks so that the cached blocks stay frozen")  # fmt: skip
    return lower.skipping(model)


def _tokenise(model: RewardModel, pairs: Pairs, config: RewardTraining) -> tuple[list[TokenPair], int, list[str]]:
    """Token pairs sorted by id, how many texts were cut, and ids of pairs left out."""
    renderer = model.renderer(config.max_length)
    rows: list[TokenPair] = []
    dropped: list[str] = []
    truncated = 0
    for pair in sorted(pairs, key=lambda p: p.id):
        chosen, rejected = renderer.render_pair(pair)
        n_cut = (chosen.truncated > 0) + (rejected.truncated > 0)
        if n_cut and config.too_long == "drop":
            dropped.append(pair.id)
            continue
        truncated += n_cut
        rows.append(TokenPair(pair.id, chosen.input_ids.tolist(), rejected.input_ids.tolist()))
    if not rows:
        raise DataError("there are no pairs to train a reward model on",
                        fix="Raise max_length" if dropped else "Check the file and its group")  # fmt: skip
    return rows, truncated, dropped


@contextlib.contextmanager
def trainable_part(hf: nn.Module, trainable_blocks: int | None) -> Iterator[int]:
    """Freeze all but the last n blocks and what follows them; yields how many parameters are left to train.

    Nothing below the first trainable block needs a gradient then, so autograd never runs there.

    Raises:
        ConfigError: more blocks than the model has.
    """
    before = {p: p.requires_grad for p in hf.parameters()}
    if trainable_blocks is not None:
        blocks = find_family(hf)[1]
        if trainable_blocks > len(blocks):
            raise ConfigError(f"trainable_blocks is {trainable_blocks}, the model has {len(blocks)} blocks")
        hf.requires_grad_(False)
        for part in [*blocks[len(blocks) - trainable_blocks :], *modules_after_blocks(hf)]:
            part.requires_grad_(True)
    try:
        yield sum(p.numel() for p in hf.parameters() if p.requires_grad)
    finally:
        for p, needed in before.items():
            p.requires_grad_(needed)
            p.grad = None


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checkpoint_folder(
    model: RewardModel,
    order: list[TokenPair],
    config: RewardTraining,
    precision: str,
    out: Path | None,
    checkpoints: Path | None,
) -> Path | None:
    """The folder for checkpoints, emptied unless it holds those of this very training; None without checkpoints."""
    if config.checkpoint_steps is None:
        return None
    folder = checkpoints or (out / ".checkpoints" if out else None)
    if folder is None:
        raise ConfigError("checkpoint_steps needs a folder", fix="Give out= or checkpoints=")
    threads = config.threads or torch.get_num_threads()
    data = digest([[r.id, r.chosen_ids, r.rejected_ids] for r in order])
    key = digest([model.fingerprint(), data, config, precision, threads, model.device.type])
    key_file = folder / "key"
    with disk_errors(folder):
        if folder.exists() and not (key_file.is_file() and key_file.read_text() == key):
            shutil.rmtree(folder)
        os.makedirs(folder, exist_ok=True)
        write_atomic(key_file, key)
    return folder
