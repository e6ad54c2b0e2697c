"""`seamark sae train` and `seamark sae suite`: autoencoders on a model's activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.options import Common, Many, parse_pairs, parse_sets, the_pairs, the_recipe
from seamark.cli.output import finish

if TYPE_CHECKING:
    from seamark.sae import Quality

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
Activation = Literal["topk", "topk_relu", "batch_topk", "jumprelu", "relu"]
MEASURES = ("fvu", "cosine", "l0", "l0_positive", "dead_share")


@dataclass(frozen=True)
class SAEOptions:
    """What is trained; without an option the recipe's value, else SAFER's. More with --set sae.KEY=VALUE."""

    hookpoint: str | None = None
    """Where to read, such as layers.11 or layers.11.mlp (block output at 3/4 depth)."""
    activation: Activation | None = None
    """How latents are selected (topk)."""
    k: int | None = None
    """Latents kept at each position, for the topk kinds (64)."""
    d_sae: int | None = None
    """Number of latents."""
    expansion: float | None = None
    """Latents for each dimension of the hookpoint, where --d-sae is not given (8)."""
    normalize: Literal["layer_norm", "none"] | None = None
    """Normalisation of each position (layer_norm)."""
    loss: Literal["relative", "squared"] | None = None
    """Relative (SAFER) or squared error (Safe-SAIL)."""
    sparsity: float | None = None
    """Weight of the sparsity term of relu (L1) and jumprelu (L0)."""
    aux: float | None = None
    """Weight of the AuxK loss for dead latents (0; 0.03125 is usual)."""
    scale: Literal["none", "expected_norm"] | None = None
    """Scale inputs to a mean norm of sqrt(d_in) in training."""
    encoder: Literal["auto", "fp32", "bf16", "int8"] | None = None
    """Number format of the encoder's product (auto: the fastest here)."""

    def given(self) -> dict[str, Any]:
        """The recipe's keys for what was given; an expansion alone replaces the recipe's number of latents."""
        found = _given({"aux_coefficient" if k == "aux" else k: v for k, v in vars(self).items()})
        return {"d_sae": None} | found if "expansion" in found else found


@dataclass(frozen=True)
class StreamOptions:
    """How activations are read and what is kept on the way."""

    buffer_gib: float | None = None
    """Memory of the block that is shuffled, for each hookpoint (2 GiB at width 2,048)."""
    spill: Path | None = None
    """Folder for that block, on disk instead of in memory."""
    cache: Path | None = None
    """Folder where activations are kept, so that later epochs and runs do not run the model."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """Number format of the model's pass (fp32)."""
    checkpoint_every: int | None = None
    """Steps between checkpoints (1000)."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl (10)."""

    def given(self) -> dict[str, Any]:
        """The recipe's keys for what was given."""
        size = None if self.buffer_gib is None else int(self.buffer_gib * 2**30)
        return _given({("buffer_bytes" if k == "buffer_gib" else k): size if k == "buffer_gib" else v
                       for k, v in vars(self).items()})  # fmt: skip


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(v) if isinstance(v, Path) else v for key, v in options.items() if v is not None}


def sae_train(
    common: Shared,
    model: str,
    out: Path,
    sae: Annotated[SAEOptions, tyro.conf.OmitArgPrefixes],
    stream: Annotated[StreamOptions, tyro.conf.OmitArgPrefixes],
    pairs: Many = (),
    general_text: str | None = None,
    track: Literal["trackio", "wandb"] | None = None,
    parallel: Literal["data", "spread"] | None = None,
) -> None:
    """Train an SAE on a model's activations in two stages: general text, then the target group's pairs.

    Interrupted, the same command goes on where it was. With several GPUs or processes: torchrun -m seamark sae train.

    Args:
        common: options of every command.
        model: a reward model, a language model or an encoder: a folder or a Hub name.
        out: folder for the SAE (safetensors and JSON), its checkpoints and metrics.jsonl.
        sae: what is trained.
        stream: how activations are read.
        pairs: preference pairs as group=file; without any, the demo pairs.
        general_text: texts of the first stage (JSONL with `text`, .txt, Parquet or a Hub name); else the pairs' texts.
        track: also send metrics to trackio or wandb, if installed.
        parallel: under torchrun: data (batches are split) or spread (SAEs are dealt out).
    """
    from seamark.features import train_sae
    from seamark.model import load_model
    from seamark.pipelines.suite import write_rejects
    from seamark.run.ranks import joined
    from seamark.text import stream_texts
    from seamark.text.pairs import RejectedRow
    from seamark.text.rendering import Rendered

    settings = sae.given() | stream.given()
    recipe = the_recipe(common, **({"sae": settings} if settings else {}))
    with joined() as rank:
        loaded = load_model(model)
        train = the_pairs(recipe, pairs, "train")
        renderer = loaded.renderer(recipe.reward.max_length)
        rejected: list[RejectedRow] = list(train.rejected)

        def both(some: Any) -> Iterator[Rendered]:
            return (side for pair in some for side in renderer.render_pair(pair))

        general = both(train)
        if general_text:
            read = stream_texts(general_text, rejected=rejected.append)
            general = (renderer.render_text(text, i) for i, text in read)
        first, second = recipe.sae.stages
        trained = train_sae(
            loaded, {first.name: general, second.name: both(train.group(recipe.target))}, recipe.sae.training_of(),
            recipe.sae.stages, out=out, track=track, parallel=parallel,
        )  # fmt: skip
        write_rejects(rejected, out)
        if rank == 0:
            finish(trained.to_json(), as_json=common.json, out=out, title="Held-out quality",
                   columns=("measure", "value"), rows=_rows(trained.quality))  # fmt: skip


def sae_suite(
    common: Shared,
    stream: Annotated[StreamOptions, tyro.conf.OmitArgPrefixes],
    model: str | None = None,
    out: str | None = None,
    hookpoint: Many = (),
    activation: Annotated[tuple[Activation, ...], tyro.conf.UseAppendAction] = (),
    k: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = (),
    expansion: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = (),
    sparsity: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = (),
    pairs: Many = (),
    text: Many = (),
    track: Literal["trackio", "wandb"] | None = None,
    parallel: Literal["data", "spread"] | None = None,
) -> None:
    """Train many SAEs from one pass of the model: hookpoints x activations x k x widths.

    A recipe (--config) can say more: several variants, each with settings of its own. Interrupted, the same command
    goes on where it was. With several GPUs or processes: torchrun -m seamark sae suite.

    Args:
        common: options of every command.
        stream: how activations are read.
        model: a reward model, a language model or an encoder: a folder, a Hub name or seamark/default.
        out: folder of the run (runs/suite).
        hookpoint: where to read; repeat for more.
        activation: topk, topk_relu, batch_topk, jumprelu or relu; repeat for more. Replaces the recipe's variants, as
            --k, --expansion and --sparsity do.
        k: latents kept at each position; repeat for more.
        expansion: latents for each dimension of the hookpoint; repeat for more.
        sparsity: weight of the sparsity term of relu and jumprelu; repeat for more.
        pairs: preference pairs as group=file; without any, the demo pairs.
        text: plain texts of a stage as stage=file, e.g. --text general=corpus.jsonl.
        track: also send metrics to trackio or wandb, if installed.
        parallel: under torchrun: data (batches are split) or spread (SAEs are dealt out).
    """
    grid = {"activation": activation, "k": k, "expansion": expansion, "sparsity": sparsity}
    variant = {key: list(values) for key, values in grid.items() if values}
    data = {"pairs": parse_pairs(pairs), "texts": parse_pairs(text, "--text", "general=corpus.jsonl")}
    run_suite_recipe(
        common, model=model, out=out, hookpoints=list(hookpoint), variants=[variant] if variant else None,
        data={key: files for key, files in data.items() if files}, training=stream.given(), track=track,
        parallel=parallel,
    )  # fmt: skip


def run_suite_recipe(common: Common, **overrides: Any) -> None:
    """Train the suite of a recipe (`common.config`, else the defaults); empty overrides count as not given."""
    from seamark.pipelines.recipe import check_data, merge
    from seamark.pipelines.suite import SuiteRecipe, load_suite_recipe, run_suite
    from seamark.run.ranks import joined

    data = merge(parse_sets(common.set), {key: value for key, value in overrides.items() if value})
    recipe = load_suite_recipe(common.config, data) if common.config else check_data(SuiteRecipe, data, "options")
    with joined() as rank:
        trained = run_suite(recipe)
        if rank == 0:
            rows = [(sae_id, *[value for _, value in _rows(q)]) for sae_id, q in trained.quality.items()]
            finish(trained.to_json(), as_json=common.json, out=Path(recipe.out), title="Held-out quality",
                   columns=("SAE", *MEASURES), rows=rows)  # fmt: skip


def _rows(quality: Quality | None) -> list[tuple[str, str]]:
    found = quality.numbers() if quality is not None else {}
    return [(name, "not available" if (v := found.get(name)) is None else f"{v:.4g}") for name in MEASURES]
