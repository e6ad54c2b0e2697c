"""TRL's `RewardTrainer`, kept quiet, offline, in our order of data, and careful about bad losses."""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from seamark.errors import ModelError
from seamark.model.loading import RewardModel
from seamark.model.order import TokenPair
from seamark.model.precision import exact_head
from seamark.model.pretrained import quiet
from seamark.run import disk_errors, progress, write_atomic

if TYPE_CHECKING:
    from seamark.model.training import RewardTraining

_WHOLE = "complete"


@dataclass(frozen=True)
class TrainingLog:
    """Per step: mean loss and share of pairs ranked right; over all: tokens without and with padding."""

    losses: list[float]
    accuracies: list[float]
    tokens: int
    padded_tokens: int


class _Trainer(RewardTrainer):
    """`RewardTrainer` that stops at the first bad loss, keeps a log in its state, and calls nobody."""

    def _send_telemetry(self) -> None:
        """No word to anybody: Seamark works offline."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Checkpoints are scratch and need no card."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Bradley-Terry loss; raises `ModelError` naming the step when it is not finite."""
        mask: Tensor = inputs["attention_mask"]
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        value = float(loss.detach())
        step = self.state.global_step + 1
        if not np.isfinite(value):
            raise ModelError(f"the loss of training step {step} is {value}",
                             fix="Lower learning_rate, or set precision to fp32")  # fmt: skip
        # The state is saved with every checkpoint, so the log survives an interruption.
        self.state.log_history.append({
            "step": step, "part_loss": value, "part_accuracy": self._metrics["train"]["accuracy"][-1],
            "pairs": mask.shape[0] // 2, "tokens": int(mask.sum()), "padded": mask.numel(),
        })  # fmt: skip
        self._metrics["train"].clear()
        return result


class _Watch(TrainerCallback):
    """Reports progress, and marks checkpoints that were written whole."""

    def __init__(self, advance: Callable[[int], None] | None) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.advance:
            self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.advance:
            self.advance(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_atomic(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE, "")


def _last_checkpoint(folder: Path | None) -> str | None:
    """The newest checkpoint that was written whole. Others are left to be overwritten."""
    if folder is None:
        return None
    whole = [p.parent for p in folder.glob(f"checkpoint-*/{_WHOLE}")]
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def _arguments(
    config: RewardTraining, n_steps: int, precision: str, on_cpu: bool, folder: Path | None, scratch: str
) -> Any:
    saving: dict[str, Any] = {"save_strategy": "no"}
    if folder is not None:
        saving = {"save_strategy": "steps", "save_steps": config.checkpoint_steps, "save_total_limit": 2}
    with warnings.catch_warnings():  # the name of gradient_checkpointing differs between transformers releases
        warnings.simplefilter("ignore", FutureWarning)
        return RewardConfig(
            output_dir=str(folder or scratch),  # made even if nothing is written
            **saving,
            max_steps=n_steps,
            per_device_train_batch_size=config.batch_size // config.accumulate,
            gradient_accumulation_steps=config.accumulate,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=int(np.ceil(config.warmup_share * n_steps)),
            lr_scheduler_type=config.scheduler,
            max_grad_norm=config.max_grad_norm,
            train_sampling_strategy="sequential",  # the order is ours
            max_length=None,  # texts are cut before; TRL would drop long pairs without a word
            disable_dropout=config.dropout == 0,
            gradient_checkpointing=config.gradient_checkpointing,
            bf16=precision == "bf16",
            tf32=None,
            use_cpu=on_cpu,
            full_determinism=False,
            seed=config.seed,
            data_seed=config.seed,
            dataloader_num_workers=0,
            dataloader_pin_memory=not on_cpu,
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            push_to_hub=False,
        )


def run_trainer(
    model: RewardModel,
    order: list[TokenPair],
    config: RewardTraining,
    precision: str,
    folder: Path | None,
    title: str | None,
) -> TrainingLog:
    """Train `model` in place on `order`, from the newest whole checkpoint in `folder` if there is one.

    Args:
        model: the model; what is to stay fixed has `requires_grad` off.
        order: pairs of all epochs in order.
        config: learning rate and the like.
        precision: "fp32" or "bf16".
        folder: where checkpoints go; none are written without.
        title: name of the progress bar; none is shown without.

    Raises:
        ModelError: a loss is not finite.
    """
    n_steps = -(-len(order) // config.batch_size)
    data = Dataset.from_dict(
        {"chosen_ids": [r.chosen_ids for r in order], "rejected_ids": [r.rejected_ids for r in order]}
    )
    bar = progress(title, n_steps, "steps") if title else contextlib.nullcontext()
    with (
        quiet(),
        bar as advance,
        disk_errors(folder or Path(".")),
        _deterministic(model.device.type),
        _forward_kept(model.hf),
        exact_head(model.hf),
        tempfile.TemporaryDirectory() as scratch,
    ):
        trainer = _Trainer(
            model=model.hf,
            args=_arguments(config, n_steps, precision, model.device.type == "cpu", folder, scratch),
            train_dataset=data,
            processing_class=model.tokenizer,
            callbacks=[_Watch(advance)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        model.hf.train()
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    model.hf.eval()
    for p in model.hf.parameters():
        p.grad = None
    return _log(trainer.state.log_history)


def _log(history: list[dict[str, Any]]) -> TrainingLog:
    parts = [h for h in history if "part_loss" in h]
    losses: list[float] = []
    accuracies: list[float] = []
    for step in sorted({h["step"] for h in parts}):
        mine = [h for h in parts if h["step"] == step]
        n = sum(h["pairs"] for h in mine)
        losses.append(sum(h["part_loss"] * h["pairs"] for h in mine) / n)
        accuracies.append(sum(h["part_accuracy"] * h["pairs"] for h in mine) / n)
    return TrainingLog(losses, accuracies, sum(h["tokens"] for h in parts), sum(h["padded"] for h in parts))


@contextlib.contextmanager
def _forward_kept(hf: nn.Module) -> Iterator[None]:
    """Take accelerate's autocast off the model again, or it would go on computing in bfloat16."""
    own = vars(hf).get("forward")
    try:
        yield
    finally:
        for name in ("forward", "_original_forward"):
            vars(hf).pop(name, None)
        if own is not None:
            vars(hf)["forward"] = own


@contextlib.contextmanager
def _deterministic(device_type: str) -> Iterator[None]:
    """On a GPU, choose kernels that always give the same bits (CPU kernels do already)."""
    if device_type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def global_state_kept(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global random states inside, and put them back afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
