"""`seamark diagnose trajectory`: how the features of a text build on one another, layer by layer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from seamark.cli.options import Common, Many, named_saes, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seamark.diagnose import Trajectory

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
COLUMNS = ("path", "token", "hookpoint", "activation", "level", "adds to the next", "ablation")
LABEL, PIECE = 60, 24
"""Characters of a label and of a token in the table. JSON has all."""


def diagnose_trajectory(
    common: Shared, model: str, text: str, sae: Many = (), answer: str | None = None, atlas: Path | None = None,
    scan: Path | None = None, nodes: int = 8, links: int = 4, checks: int = 16, paths: int = 5, explained: bool = False,
    toward: str | None = None, at: int | None = None, generate: int | None = None, temperature: float = 0.0,
    seed: int = 0, max_tokens: int = 512, max_seconds: float | None = None, plain: bool = False,
    out: Path | None = None,
) -> None:  # fmt: skip
    """Link the features of a text across layers, up to the reward or the next token, and print the strongest paths.

    Links are gradients (one pass back for each later feature), held against exact ablation on a sample of them: the
    title tells how well the two agree.

    Args:
        common: options of every command.
        model: a folder or a Hub name.
        text: the prompt; with --plain, a text of its own.
        sae: an SAE's folder, or name=folder; repeat: two hookpoints at least.
        answer: the answer; a reward model's output is its reward.
        atlas: an atlas that explains the features, gives Q_f where no scan does, and tells words from concepts.
        scan: a scan with the same SAEs, which gives Q_f, and texts where the atlas has none.
        nodes: most features of a hookpoint, each at one token.
        links: most links into a feature, and into the output.
        checks: features that are ablated to check the links that go out of them.
        paths: most paths in the table.
        explained: only features that have an explanation.
        toward: lead toward this text's first token, not to the token that follows.
        at: read the output behind the token at this place.
        generate: let a language model write the answer, with at most so many tokens.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn.
        seed: of the draws.
        max_tokens: most tokens; a longer text loses its beginning.
        max_seconds: begin no further link or check after so many seconds of reading; what is left out is told.
        plain: read the text without a chat template.
        out: folder for result.json.
    """
    from pydantic import ValidationError

    from seamark.atlas.store import Atlas
    from seamark.diagnose import (
        Tracing,
        atlas_examples,
        atlas_labels,
        atlas_quantiles,
        first_known,
        match_saes,
        other_model,
        scan_examples,
        scan_units,
        trace,
    )
    from seamark.features import Scan
    from seamark.model import load_model
    from seamark.model.generation import Generation
    from seamark.sae import SparseAutoencoder

    the_recipe(common)
    try:
        how = None if generate is None else Generation(max_new_tokens=generate, temperature=temperature, seed=seed)
        config = Tracing(nodes=nodes, links=links, checks=checks, paths=paths, explained=explained, toward=toward,
                         at=at, seed=seed, max_seconds=max_seconds)  # fmt: skip
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(first["msg"], where=f"--{first['loc'][0]}".replace("_", "-"), fix="See --help") from None
    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    q: dict[str, NDArray[np.float64]] = {}
    labels, known = None, []
    with ExitStack() as held:
        if atlas is not None:
            opened = held.enter_context(Atlas.open(atlas))
            names = match_saes(opened, suite)
            labels, q = atlas_labels(opened, names), atlas_quantiles(opened, names, suite)
            known.append(atlas_examples(opened, names))
        found = None if scan is None else Scan.open(scan)
        if found is not None:
            q |= scan_units(found, suite)
            known.append(scan_examples(found))
        loaded = load_model(model)
        # Reads all weights once: a name does not tell them, and two names may be one model's.
        caveats = () if found is None else other_model(found, loaded.fingerprint())
        done = trace(loaded, suite, text, answer, q=q, labels=labels, examples=first_known(*known),
                     config=config, max_tokens=max_tokens, generate=how, chat=not plain)  # fmt: skip
    done = done.model_copy(update={"caveats": caveats})
    finish(done.model_dump(mode="json"), as_json=common.json, out=out, title=_title(done), columns=COLUMNS,
           rows=_rows(done) or [("no feature is linked to another", *["–"] * 6)])  # fmt: skip


def _rows(done: Trajectory) -> list[tuple[str, ...]]:
    from seamark.show.numbers import number, percent, signed

    by_ends = {(link.source, link.target): link for link in done.links}
    rows: list[tuple[str, ...]] = []
    for p, path in enumerate(done.paths, 1):
        for step, i in enumerate(path.nodes):
            node, end = done.nodes[i], step + 1 == len(path.nodes)
            link = by_ends.get((i, None if end else path.nodes[step + 1]))
            z = None if end or link is None else done.nodes[path.nodes[step + 1]].activation
            label = f" {node.label[:LABEL]}" if node.label and node.state == "text" else ""
            known = node.normalised is not None
            rows.append((
                f"{p}{'  ' * step} {node.sae}/{node.latent}{label}",
                repr(done.tokens[node.token].text)[1:-1][:PIECE] or "·", node.hookpoint,
                number(node.normalised, 2) if known else f"z {number(node.activation, 2)}", node.level.level or "–",
                "–" if link is None else signed(link.effect) if z is None else percent(link.effect / z),
                "–" if link is None or link.ablation is None else
                signed(link.ablation) if z is None else percent(link.ablation / z),
            ))  # fmt: skip
    return rows


def _title(done: Trajectory) -> str:
    from seamark.show.numbers import estimate_text, signed

    title = f"{len(done.tokens)} tokens through {done.model}"
    if done.truncated:
        title += f"; the first {done.truncated} were cut off"
    if done.output is None:
        title += f"; no output: {done.output_reason}"
    elif done.output.kind == "reward":
        title += f"; reward {signed(done.output.value)}"
    else:
        title += f"; logit of {done.output.token!r} behind token {done.output.at}: {signed(done.output.value)}"
    for name, agreement in (("links between features", done.between), ("links to the output", done.to_output)):
        if agreement.links:
            title += (f"; {name}: rank correlation with ablation {estimate_text(agreement.spearman, 'signed')}, "
                      f"same sign {estimate_text(agreement.same_sign)} of {agreement.links}")  # fmt: skip
    if done.left_out.features or done.left_out.checks:
        title += (f"; out of time: no links into {done.left_out.features} features were looked for, and "
                  f"{done.left_out.checks} ablations were left out")  # fmt: skip
    return "\n".join([title, *(f"note: {caveat}" for caveat in done.caveats)])
