"""The scan: one pass of a model over a corpus that gives all that later stages need.

For each text: its reward, and its latents pooled over the scoring positions. For each feature: statistics and Q_f. For
each token: its latents, in shards, for contexts. The corpus is cut into parts, each a folder that is written whole; a
part depends on its own texts alone, so parts may be made after a kill, by several processes, or on several machines,
and `merge_scans` makes the same bytes of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from seamark.errors import ConfigError, DataError, RunError
from seamark.features.config import ScanConfig
from seamark.features.gather import public_name
from seamark.features.reading import FORMAT_VERSION, Scan
from seamark.features.scan_merge import (
    PLAN,
    check_place,
    complete,
    continues,
    discard,
    finish,
    is_scan,
    read_plan,
    work_folder,
)
from seamark.features.scan_parts import PartReader, Suite
from seamark.features.scan_texts import ScanTexts
from seamark.model.loading import HookedModel
from seamark.model.precision import resolve_precision
from seamark.model.reading import reads_side_by_side
from seamark.run import digest, disk_errors, progress, ranks, versions, write_json
from seamark.sae import SparseAutoencoder
from seamark.text.corpus import Corpus
from seamark.text.pairs import Pairs

BATCH_TOKENS = {"cpu": 512, "gpu": 16384}
AT_ONCE = 8
"""Batches that run side by side on a CPU, at most; with more cores each gets several threads."""
AUTO_TOKENS_BYTES = 4 << 30
BYTES_OF_A_CHARACTER = 4
ASSUMED_L0 = 256
"""Latents a position of an autoencoder without k, to foresee the size of its token shards."""


def scan(
    model: HookedModel,
    suite: Suite,
    corpus: Pairs | Corpus,
    out: str | PathLike[str],
    *,
    config: ScanConfig | None = None,
) -> Scan:
    """Read every text once and write what was found into the folder `out`.

    A finished scan of the same model, autoencoders, texts and config is not made again, and one that was broken off
    goes on with the parts it lacks. Reruns, kills and the number of processes change no byte; another `batch_tokens`
    moves numbers by rounding only. Under torchrun each process reads its share of the parts, and `out` must be a
    folder that all of them see.

    Args:
        model: a reward model, or any model with `config.rewards` off.
        suite: {sae id: autoencoder}; many may share a hookpoint.
        corpus: pairs, two rows each (a text that occurs twice is read twice), or plain texts, all response.
        out: folder to write; an older scan there stays until the new one is whole.
        config: what to read; the default is `ScanConfig()`.

    Raises:
        DataError: no texts, no position in any text of a group, NaN or infinite activations.
        ConfigError: no autoencoder, one without hookpoint, or one whose width is not the model's.
        RunError: `out` holds something else than a scan.
    """
    out = Path(out)
    with disk_errors(out):
        texts, plan = _plan(model, suite, corpus, out, config or ScanConfig())
        if not ranks.told(is_scan(out, plan["key"])):
            _read(model, suite, texts, plan, out, range(len(texts.parts)))
            ranks.by_first(lambda: finish([out], out))
    return Scan.open(out)


def scan_shard(
    model: HookedModel, suite: Suite, corpus: Pairs | Corpus, out: str | PathLike[str], shard: tuple[int, int], *,
    config: ScanConfig | None = None,
) -> int:  # fmt: skip
    """Read shard (i, n) of the corpus, parts i, i + n, …, into the folder `out`; `merge_scans` joins all n.

    Shards may share a folder or have one each, on machines that know nothing of each other. Arguments and errors as
    of `scan`.

    Returns:
        How many parts the shard has.
    """
    out, (i, n) = Path(out), shard
    if not 0 <= i < n:
        raise ConfigError(f"there is no shard {i} of {n}", fix=f"Shards of {n} are 0 to {n - 1}")
    with disk_errors(out):
        texts, plan = _plan(model, suite, corpus, out, config or ScanConfig())
        mine = range(i, len(texts.parts), n)
        if not ranks.told(is_scan(out, plan["key"])):
            _read(model, suite, texts, plan, out, mine, keep=True)
    return len(mine)


def merge_scans(folders: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Scan:
    """Join the shards that lie in `folders` into the scan `out`: the same bytes as one process would have made.

    Raises:
        DataError: parts are missing, or no text of a group has a position to read.
        FormatError: a folder holds no shard, or shards of different scans.
        RunError: `out` holds something else than a scan.
    """
    with disk_errors(Path(out)):
        finish([Path(f) for f in folders], Path(out))
    return Scan.open(out)


def check_suite(model: HookedModel, suite: Mapping[str, SparseAutoencoder]) -> None:
    """Raise `ConfigError` unless every autoencoder names a hookpoint of this model and has its width."""
    if not suite:
        raise ConfigError("no autoencoder to scan with", fix="Give {name: autoencoder}")
    for sae_id, sae in suite.items():
        hookpoint = sae.config.hookpoint
        if not hookpoint:
            raise ConfigError("the autoencoder names no hookpoint", where=sae_id, fix="Set it in its config.json")
        width = model.d_model(hookpoint)
        if width != sae.config.d_in:
            raise ConfigError(
                f"d_in is {sae.config.d_in} but {hookpoint} of {model.name} is {width} wide", where=sae_id,
                fix="Use the model it was trained on",
            )  # fmt: skip


def _plan(
    model: HookedModel, suite: Suite, corpus: Pairs | Corpus, out: Path, config: ScanConfig
) -> tuple[ScanTexts, dict[str, Any]]:
    """The parts, and what the scan's manifest will say."""
    ranks.by_first(lambda: _complete(out))
    if len(corpus) == 0:
        raise DataError("nothing to scan", where=str(out), fix="Check the files given as pairs or texts")
    check_suite(model, suite)
    suite = dict(sorted(suite.items()))
    texts = ScanTexts(corpus)
    about = {
        "config": config.model_dump(exclude={"batch_tokens"}),
        "model": model.fingerprint(),
        "saes": {sae_id: sae.fingerprint() for sae_id, sae in suite.items()},
        "texts": texts.fingerprint(),
        "renderer": model.renderer(config.max_length).fingerprint(),
        "format_version": FORMAT_VERSION,
    }
    plan = about | {
        "key": digest(about), "model_name": public_name(model),
        "batch_tokens": config.batch_tokens or BATCH_TOKENS["cpu" if model.device.type == "cpu" else "gpu"],
        "choices": {"keep_tokens": _keep_tokens(model, suite, texts, config),
                    "precision": resolve_precision(config.precision, model.device.type)},
        "versions": versions(), "n_pairs": len(corpus) if isinstance(corpus, Pairs) else 0, "groups": texts.groups,
        "parts": [len(part) for part in texts.parts], "threads": _threads_of_a_batch(model),
        "sae_configs": {sae_id: sae.config.model_dump() for sae_id, sae in suite.items()},
    }  # fmt: skip
    return texts, ranks.told(_resolved(plan, read_plan(work_folder(out)), config))


def _resolved(plan: dict[str, Any], begun: dict[str, Any] | None, config: ScanConfig) -> dict[str, Any]:
    """What is left to the machine is decided once, by whoever began the same scan in this folder."""
    if begun is None or any(begun.get(k) != plan[k] for k in ("key", "parts")):
        return plan
    left = ["choices", "threads"] + ([] if config.batch_tokens else ["batch_tokens"])
    return plan | {k: begun[k] for k in left if k in begun}


def _threads_of_a_batch(model: HookedModel) -> int:
    """torch's threads for one batch. On a CPU batches run side by side and share out the cores; a GPU runs one."""
    cores = torch.get_num_threads()
    return max(1, cores // AT_ONCE) if _side_by_side(model) else cores


def _side_by_side(model: HookedModel) -> bool:
    return model.device.type == "cpu" and reads_side_by_side(model)


def _keep_tokens(model: HookedModel, suite: Suite, texts: ScanTexts, config: ScanConfig) -> bool:
    if config.keep_tokens != "auto":
        return config.keep_tokens == "always"
    per_position = sum(8 * (sae.config.k or ASSUMED_L0) + 8 for sae in suite.values()) + 9
    if texts.characters * BYTES_OF_A_CHARACTER * per_position <= AUTO_TOKENS_BYTES:
        return True  # even if every byte were a token
    n = texts.expected_positions(model.renderer(config.max_length), config)
    return n * per_position <= AUTO_TOKENS_BYTES


def _read(
    model: HookedModel, suite: Suite, texts: ScanTexts, plan: dict[str, Any], out: Path, parts: range, *,
    keep: bool = False,
) -> None:  # fmt: skip
    """Make this process's share of `parts` in the work folder of `out`, beside an older scan that may be there; with
    `keep` parts of another scan there are an error."""
    ranks.by_first(lambda: _prepare(out, plan, keep=keep))
    config = ScanConfig.model_validate(plan["config"] | {"precision": plan["choices"]["precision"]})
    suite = dict(sorted(suite.items()))
    mine = list(parts[ranks.rank() :: ranks.world()])
    cores = torch.get_num_threads()
    at_once = min(AT_ONCE, max(1, cores // plan["threads"])) if _side_by_side(model) else 1
    with progress("Scan", sum(len(texts.parts[p]) for p in mine), "pairs" if plan["n_pairs"] else "texts") as advance:
        reader = PartReader(model, suite, texts, config, batch_tokens=plan["batch_tokens"],
                            keep_tokens=plan["choices"]["keep_tokens"], at_once=at_once,
                            threads=plan["threads"])  # fmt: skip
        with _threads(plan["threads"]):
            ranks.together(lambda: reader.read(mine, work_folder(out) / "parts", advance))


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """torch's fp32 products differ in their last bits with the number of threads: a scan goes on as it began."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _complete(out: Path) -> None:
    if out.is_dir():
        with _alone(out):
            complete(out)


def _prepare(out: Path, plan: dict[str, Any], *, keep: bool) -> None:
    """The work folder: parts of the same scan that lie there stay, those of another go (unless `keep`)."""
    out.mkdir(parents=True, exist_ok=True)
    check_place(out)
    with _alone(out):
        work = work_folder(out)
        if work.exists() and continues(read_plan(work), plan):
            return
        if keep and (work / PLAN).exists():
            raise RunError("shards of another scan lie here, or of this one with other settings", where=str(out),
                           fix="Give every scan a folder of its own, and its shards the same settings")  # fmt: skip
        discard(work)
        (work / "parts").mkdir(parents=True)
        write_json(work / PLAN, plan)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Shards that share a folder may begin at the same moment: one prepares it, the others find it prepared. Where a
    file system has no locks, they are on their own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
