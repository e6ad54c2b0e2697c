"""Joining the parts of a scan: statistics are added in the order of parts, whoever made them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seamark.errors import DataError, FormatError, RunError
from seamark.features.accumulate import Totals
from seamark.features.arrays import load_arrays, read_table, save_arrays
from seamark.features.reading import MANIFEST
from seamark.features.scan_parts import part_name, sae_folder
from seamark.run import read_json, write_json

PLAN = "plan.json"
BESIDE = {"manifest.json", "result.json", "rejected.jsonl"}
"""What a run or a command leaves beside a scan."""


def work_folder(out: Path) -> Path:
    """Where parts are made, inside the folder of the scan."""
    return out / ".scan"


def read_plan(work: Path) -> dict[str, Any] | None:
    """What is being made in a work folder; None where that cannot be told."""
    try:
        found = read_json(work / PLAN)
    except RunError:
        return None
    return found if isinstance(found, dict) else None


def is_scan(out: Path, key: str) -> bool:
    """Whether the finished scan of this key lies in `out`."""
    try:
        return bool(read_json(out / MANIFEST).get("key") == key)
    except (RunError, AttributeError):
        return False


def continues(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Whether parts made under one plan are those of another, byte for byte."""
    return old is not None and all(
        k in old and old[k] == new.get(k) for k in ("key", "batch_tokens", "choices", "parts")
    )


def check_place(out: Path) -> None:
    """`RunError` where `out` holds something that no scan has put there."""
    ours = (out / MANIFEST).exists() or (work_folder(out) / PLAN).exists()
    known = BESIDE | ({MANIFEST, "parts", "saes"} if ours else set())
    found = {p.name for p in out.iterdir() if not p.name.startswith(".")} if out.is_dir() else set()
    if (out / MANIFEST).exists() or not found - known:
        return
    raise RunError(
        f"the folder holds {min(found - known)!r} and is no scan", where=str(out), fix="Choose another --out"
    )


def complete(out: Path) -> None:
    """Bring a finished scan's manifest into place, where a kill came just before that, or just after."""
    work = work_folder(out)
    if not work.exists() or (work / "parts").exists():
        return
    if (work / MANIFEST).exists() and (out / "parts").exists():
        (work / MANIFEST).rename(out / MANIFEST)
    if (out / MANIFEST).exists():
        discard(work)


def discard(work: Path) -> None:
    """Remove a work folder so that a kill leaves nothing that could be taken for one."""
    trash = work.with_name(".scan-old")
    shutil.rmtree(trash, ignore_errors=True)
    if work.exists():
        work.rename(trash)
        shutil.rmtree(trash)


def finish(folders: Sequence[Path], out: Path) -> None:
    """Make the scan `out` of the parts that lie in `folders`; those of `out` itself are moved, others copied.

    The manifest goes first from an older scan in `out` and comes last with the new one.
    """
    complete(out)
    plan, places = _common_plan(folders)
    if is_scan(out, plan["key"]):
        return
    check_place(out)
    work = work_folder(out)
    if work.exists() and not continues(read_plan(work), plan):
        discard(work)
    parts = _collect(plan, places, work)
    if not (work / PLAN).exists():
        write_json(work / PLAN, plan)
    about = _check(plan, parts)
    for sae_id, config in plan["sae_configs"].items():
        _write_totals(work, sae_id, int(config["d_sae"]), parts)
    write_json(work / MANIFEST, {k: v for k, v in plan.items() if k != "threads"} | about)
    (out / MANIFEST).unlink(missing_ok=True)
    for name in ("saes", "parts"):
        shutil.rmtree(out / name, ignore_errors=True)
        (work / name).rename(out / name)
    (work / MANIFEST).rename(out / MANIFEST)
    discard(work)


def _common_plan(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Path]]:
    """The plan of the first folder, and every place whose parts were made under it: unfinished scans and whole ones."""
    common: dict[str, Any] | None = None
    usable: list[Path] = []
    for folder in folders:
        plans = {work_folder(folder): read_plan(work_folder(folder)), folder: _plan_of_finished(folder)}
        found = {place: plan for place, plan in plans.items() if plan is not None}
        if not found:
            raise FormatError("no shard of a scan here", where=str(folder), fix="Name the folders given to --out")
        common = common or next(iter(found.values()))
        mine = [place for place, plan in found.items() if continues(plan, common)]
        if not mine:
            raise FormatError(f"a shard of another scan than {folders[0]}", where=str(folder),
                              fix="Merge shards of one model, suite, corpus and config")  # fmt: skip
        usable += mine
    if common is None:
        raise FormatError("no shard is given", fix="Name the folders given to --out")
    return common, usable


def _plan_of_finished(folder: Path) -> dict[str, Any] | None:
    """The plan of a scan that is finished already: whole ones may be named among the shards."""
    try:
        found = read_json(folder / MANIFEST)
    except RunError:
        return None
    return found if isinstance(found, dict) and {"key", "parts", "batch_tokens", "choices"} <= found.keys() else None


def _collect(plan: dict[str, Any], places: Sequence[Path], work: Path) -> list[Path]:
    """Bring every part into the work folder; its path by number. `DataError` where some are missing."""
    target = work / "parts"
    target.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in map(part_name, range(len(plan["parts"]))):
        if (target / name).exists():
            continue
        source = next((part for place in places if (part := place / "parts" / name).exists()), None)
        if source is None:
            missing.append(name)
        else:
            _copy(source, target / name)
    if missing:
        raise DataError(f"{len(missing)} of {len(plan['parts'])} parts are missing, first {missing[0]}",
                        where=", ".join(map(str, places)), fix="Run the shards that are not done")  # fmt: skip
    for scratch in target.glob(".*"):
        shutil.rmtree(scratch)
    return [target / part_name(p) for p in range(len(plan["parts"]))]


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all; hard links where the file system has them, since nothing writes into a finished part."""
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shutil.copytree(source, scratch, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(source, scratch)
    scratch.rename(target)


def _check(plan: dict[str, Any], parts: Sequence[Path]) -> dict[str, Any]:
    """Sizes of the parts. `DataError` where a group has no position at all."""
    read: dict[str, int] = dict.fromkeys(plan["groups"], 0)
    rows, tokens, truncated = [], 0, 0
    for part in parts:
        table = read_table(part / "texts.parquet", ["group", "n_positions", "n_tokens", "truncated"])
        rows.append(table.num_rows)
        for group, n in zip(table["group"].to_pylist(), table["n_positions"].to_pylist(), strict=True):
            read[group] += n
        tokens += sum(table["n_tokens"].to_pylist())
        truncated += sum(n > 0 for n in table["truncated"].to_pylist())
    for group, n in read.items():
        if n == 0:
            config = plan["config"]
            raise DataError(
                f"no text of group {group!r} has a position to read", where="scan",
                fix=f"Choose other positions than {config['positions']!r} with rule {config['rule']!r}",
            )  # fmt: skip
    return {"rows": rows, "positions": read, "tokens": tokens, "truncated_texts": truncated}


def _write_totals(work: Path, sae_id: str, d_sae: int, parts: Sequence[Path]) -> None:
    whole = Totals.none(d_sae)
    for part in parts:
        whole.add(Totals.of(load_arrays(sae_folder(part, sae_id) / "totals.safetensors")))
    bins = {"bin_keys": whole.bins.keys, "bin_counts": whole.bins.counts}
    save_arrays(sae_folder(work, sae_id) / "stats.safetensors", asdict(whole.stats()) | bins)
