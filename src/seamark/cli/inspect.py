"""`seamark inspect`: which features fire at each token of a text."""

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

    from seamark.diagnose import Inspection, Labels
    from seamark.diagnose.inspection import Firing

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
COLUMNS = ("token", "part", "firing", "strongest features")
SHOWN, LABEL, PIECE = 3, 60, 24
"""Features of a token in the table; characters of a label and of a token there. JSON has all."""


def inspect(
    common: Shared, text: str, model: str | None = None, sae: Many = (), answer: str | None = None,
    atlas: Path | None = None, scan: Path | None = None, out: Path | None = None, top: int = 20,
    max_tokens: int = 1024, generate: int | None = None, temperature: float = 0.0, seed: int = 0, plain: bool = False,
    guard: Path | None = None,
) -> None:  # fmt: skip
    """Read one text and print the features that fire strongest at each of its tokens, or what a guard says of it.

    Activations are shown as shares of Q_f, each feature's own unit, where a scan or an atlas gives it, else as they are
    (then with "z").

    Args:
        common: options of every command.
        text: the prompt; with --plain or --guard, a text of its own.
        model: a folder or a Hub name; with --guard, where the guard's own has another name here, and always with guards
            that are not your own: without it, the model that the guard names is opened.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        answer: the answer; without it a language model reads up to where its answer begins.
        atlas: an atlas that explains the features, and gives Q_f where no scan does.
        scan: a scan with the same SAEs, which gives Q_f.
        out: folder for result.json.
        top: features kept of each token and hookpoint.
        max_tokens: most tokens; a longer text loses its beginning.
        generate: let a language model write the answer, with at most so many tokens.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn.
        seed: of the draws.
        plain: read the text without a chat template.
        guard: a guard of `diagnose risk`: prints the probability, the decision, and the latents that made it.
    """
    if guard is not None:
        if sae or answer is not None or generate is not None or atlas is not None or scan is not None:
            raise ConfigError("a guard reads a text alone", where="--guard", fix="Give --text, and --model if need be")
        the_recipe(common)
        _guarded(common, guard, model, text, out, top)
        return
    if model is None:
        raise ConfigError("no model is given", where="--model", fix="Give --model and --sae, or --guard")
    _inspected(common, model, text, sae, answer, atlas, scan, out, top, max_tokens, generate, temperature, seed, plain)


def _guarded(common: Common, path: Path, model: str | None, text: str, out: Path | None, top: int) -> None:
    from seamark.diagnose.guard import Guard
    from seamark.model import load_model
    from seamark.show.numbers import number, percent, signed

    guard = Guard.load(path, None if model is None else load_model(model))
    rendered = guard.render(text)
    pooled = guard.pooled(rendered)[0]
    added = pooled * guard.weights.weights
    probability = float(guard.score_rendered(rendered)[0])
    flagged = probability >= guard.about.threshold
    order = [i for i in abs(added).argsort(kind="stable")[::-1].tolist() if pooled[i] > 0][:top]
    latents = [{"latent": int(guard.weights.latents[i]), "activation": float(pooled[i]), "adds": float(added[i])}
               for i in order]  # fmt: skip
    result = {"guard": guard.about.model_dump(mode="json"), "probability": probability, "flagged": flagged,
              "tokens": len(rendered[0]), "latents": latents}  # fmt: skip
    about = guard.about
    title = (f"{about.domain}: {percent(probability)}, {'flagged' if flagged else 'not flagged'} "
             f"(threshold {percent(about.threshold)}; {about.kind} guard of {about.model})")  # fmt: skip
    rows = [(f"{about.sae}/{row['latent']}", number(row["activation"]), signed(row["adds"])) for row in latents]
    finish(result, as_json=common.json, out=out, title=title, columns=("latent", about.pooling, "adds to the score"),
           rows=rows or [("none fires", "–", "–")])  # fmt: skip


def _inspected(
    common: Common, model: str, text: str, sae: Many, answer: str | None, atlas: Path | None, scan: Path | None,
    out: Path | None, top: int, max_tokens: int, generate: int | None, temperature: float, seed: int, plain: bool,
) -> None:  # fmt: skip
    from pydantic import ValidationError

    from seamark.atlas.store import Atlas
    from seamark.diagnose import atlas_labels, atlas_quantiles, inspect_text, match_saes, other_model, scan_units
    from seamark.features import Scan
    from seamark.model import load_model
    from seamark.model.generation import Generation
    from seamark.sae import SparseAutoencoder

    the_recipe(common)
    try:
        how = None if generate is None else Generation(max_new_tokens=generate, temperature=temperature, seed=seed)
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(first["msg"], where=f"--generate, {first['loc'][0]}", fix="See --help") from None
    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    labels: Labels | None = None
    q: dict[str, NDArray[np.float64]] = {}
    with ExitStack() as held:
        if atlas is not None:
            opened = held.enter_context(Atlas.open(atlas))
            names = match_saes(opened, suite)
            labels, q = atlas_labels(opened, names), atlas_quantiles(opened, names, suite)
        found = None if scan is None else Scan.open(scan)
        if found is not None:
            q |= scan_units(found, suite)
        loaded = load_model(model)
        done = inspect_text(loaded, suite, text, answer, q=q, labels=labels, top=top, max_tokens=max_tokens,
                            generate=how, chat=not plain)  # fmt: skip
    caveats = () if found is None else other_model(found, loaded.fingerprint())
    done = done.model_copy(update={"caveats": caveats})
    finish(done.model_dump(mode="json"), as_json=common.json, out=out, title=_title(done), columns=COLUMNS,
           rows=_rows(done))  # fmt: skip


def _rows(done: Inspection) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for token in done.tokens:
        part = f"{token.span}, special" if token.special else token.span
        strongest = "; ".join(_firing(done, firing) for firing in token.firings[:SHOWN])
        rows.append((repr(token.text)[1:-1][:PIECE] or "·", part, str(token.n_firing), strongest or "–"))
    return rows


def _firing(done: Inspection, firing: Firing) -> str:
    from seamark.show.numbers import number

    feature = done.features[firing.feature]
    known = firing.normalised is not None
    strength = number(firing.normalised, 2) if known else f"z {number(firing.activation, 2)}"
    label = f" {feature.label[:LABEL]}" if feature.label and feature.state == "text" else ""
    return f"{feature.sae}/{feature.latent} {strength}{label}"


def _title(done: Inspection) -> str:
    from seamark.show.numbers import signed

    title = f"{len(done.tokens)} tokens through {done.model}, {done.read}"
    if done.truncated:
        title += f"; the first {done.truncated} were cut off"
    if done.reward is not None:
        title += f"; reward {signed(done.reward)}"
    if done.generated is not None:
        title += f"; {done.generated.tokens} generated, stopped by {done.generated.stopped}"
    return "\n".join([title, *(f"note: {caveat}" for caveat in done.caveats)])
