"""`seamark scan run|merge|info`: read a corpus once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.options import Common, Many, named_saes, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.features import Scan

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
REJECTED = "rejected.jsonl"


def scan_run(
    common: Shared, model: str, sae: Many, out: Path, pairs: Many = (), texts: Many = (), shard: str | None = None,
    split: Literal["train", "test"] | None = None,
) -> None:  # fmt: skip
    """Read all pairs, or plain texts, once: rewards, latents and statistics, in a folder that all later stages read.

    A scan that was broken off goes on where it was. Under torchrun the processes share the work; on machines that share
    nothing, run one --shard on each and join them with `scan merge`.

    Args:
        common: options of every command.
        model: a folder or a Hub name; rewards are read of reward models only.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        out: folder of the scan.
        pairs: preference pairs as group=file; without pairs and texts, the demo pairs.
        texts: plain texts instead of pairs: JSONL with `text`, .txt, Parquet or a Hub name.
        split: only one side of the recipe's split of the pairs; without it, all of them.
        shard: read only share i of n of the corpus, as i/n, i from 1.
    """
    from seamark.features import scan, scan_shard
    from seamark.model import RewardModel, load_model
    from seamark.pipelines.suite import write_rejects
    from seamark.run.ranks import joined
    from seamark.sae import SparseAutoencoder
    from seamark.text import read_texts

    if pairs and texts:
        raise ConfigError("both pairs and texts are given", where="--texts", fix="Scan them one after the other")
    if texts and split:
        raise ConfigError("only pairs are split", where="--split", fix="Leave it out with --texts")
    which = None if shard is None else parse_shard(shard)
    recipe = the_recipe(common)
    suite = {name: SparseAutoencoder.from_pretrained(path) for name, path in named_saes(sae).items()}
    config = recipe.scan.model_copy(update={"max_length": recipe.scan.max_length or recipe.reward.max_length})
    with joined() as rank:
        loaded = load_model(model)
        if not isinstance(loaded, RewardModel):
            config = config.model_copy(update={"rewards": False})
        corpus = read_texts(texts) if texts else the_pairs(recipe, pairs, split)
        if which is None:
            found = scan(loaded, suite, corpus, out, config=config)
            write_rejects(list(corpus.rejected), out)
            if rank == 0:
                _show(found, common, out)
            return
        n = scan_shard(loaded, suite, corpus, out, which, config=config)
        write_rejects(list(corpus.rejected), out)
        if rank == 0:
            rows = [("parts of this shard", str(n)), ("next", "seamark scan merge FOLDER… --out SCAN")]
            finish({"shard": shard, "parts": n, "out": str(out)}, as_json=common.json, title="Shard of a scan",
                   columns=("what", "value"), rows=rows)  # fmt: skip


def scan_merge(common: Shared, shards: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path) -> None:
    """Join the shards of a scan: the same bytes as one process would have made.

    Args:
        common: options of every command.
        shards: the folders the shards were written to; one, where all shared it.
        out: folder of the scan; may be one of them.
    """
    from seamark.features import merge_scans
    from seamark.run import disk_errors, write_atomic

    if not shards:
        raise ConfigError("no shard is given", fix="Name the folders given to scan run --shard")
    found = merge_scans(shards, out)
    rejected = next((file for folder in shards if (file := folder / REJECTED).exists()), None)
    if rejected is not None:  # every shard read the whole corpus, so their lists are alike
        with disk_errors(out):
            write_atomic(out / REJECTED, rejected.read_bytes())
    _show(found, common, out)


def scan_info(common: Shared, scan: Annotated[Path, tyro.conf.Positional]) -> None:
    """What a scan holds: texts by group, positions, and of each SAE how many latents fire and how often.

    Args:
        common: options of every command.
        scan: the scan's folder.
    """
    from seamark.features import Scan

    _show(Scan.open(scan), common, None)


def parse_shard(text: str) -> tuple[int, int]:
    """`3/16` as (2, 16). `ConfigError` on anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"{text!r} is no shard", where="--shard", fix="Write i/n, i from 1 to n, as in --shard 3/16")
    return int(match[1]) - 1, int(match[2])


def _show(found: Scan, common: Common, out: Path | None) -> None:
    about = found.manifest
    saes = {name: _sae(found, name) for name in found.sae_ids}
    result: dict[str, Any] = {
        "scan": str(found.path), "model": about["model_name"], "config": about["config"], "choices": about["choices"],
        "groups": about["groups"], "n_pairs": about["n_pairs"], "texts": sum(about["rows"]), "tokens": about["tokens"],
        "truncated_texts": about["truncated_texts"], "positions": about["positions"], "parts": len(about["rows"]),
        "saes": saes,
    }  # fmt: skip
    kind = "pairs" if about["n_pairs"] else "texts"
    rows = [("model", about["model_name"])]
    rows += [(f"{g}: {kind}, positions", f"{n:,}, {about['positions'][g]:,}") for g, n in about["groups"].items()]
    rows += [("tokens", f"{about['tokens']:,}"), ("truncated texts", f"{about['truncated_texts']:,}"),
             ("rewards", "yes" if about["config"]["rewards"] else "no"),
             ("latents of single tokens", "kept" if about["choices"]["keep_tokens"] else "not kept"),
             ("mean raw activations", "kept" if found.keeps_raw else "not kept")]  # fmt: skip
    rows += [(f"SAE {name}", f"{s['hookpoint']}, {s['d_sae']:,} latents, {s['firing']:,} fire, L0 {s['l0']:.1f}, "
              f"Q_f of {s['with_q']:,}") for name, s in saes.items()]  # fmt: skip
    finish(result, as_json=common.json, out=out, title="Scan", columns=("what", "value"), rows=rows)


def _sae(found: Scan, name: str) -> dict[str, Any]:
    stats, config = found.feature_stats(name), found.manifest["sae_configs"][name]
    positions = sum(found.manifest["positions"].values())
    return config | {
        "firing": int((stats.count > 0).sum()), "l0": float(stats.count.sum()) / positions,
        "with_q": int((stats.q == stats.q).sum()),  # NaN: not available
    }  # fmt: skip
