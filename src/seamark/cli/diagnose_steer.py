"""`seamark diagnose steer`: move features, and read rewards or answers again."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import tyro

from seamark.cli.options import Common, Many, named_saes, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seamark.diagnose import Intervention, SteeredPairs, SteeredReward, SteeredText
    from seamark.model import HookedModel
    from seamark.model.generation import Generation
    from seamark.sae import SparseAutoencoder

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
Action = Literal["add", "set", "scale", "ablate"]
_FEATURE = re.compile(r"(?P<sae>[^=]+)/(?P<latent>\d{1,9})(?:=(?P<action>[a-z]+)(?::(?P<amount>[^:]+))?)?")
_SPAN = re.compile(r"(\d{1,9}):(\d{1,9})")


class _Asked(NamedTuple):
    """What the command was given, opened; and what to bear in mind of it."""

    model: HookedModel
    suite: dict[str, SparseAutoencoder]
    interventions: list[Intervention]
    q: dict[str, NDArray[np.float64]]
    caveats: tuple[str, ...]


def diagnose_steer(
    common: Shared, model: str, sae: Many = (), feature: Many = (), action: Action = "add", amount: float = 1.0,
    where: str = "response", scan: Path | None = None, atlas: Path | None = None, pairs: Many = (),
    text: str | None = None, answer: str | None = None, generate: int | None = None, temperature: float = 0.0,
    seed: int = 0, max_length: int | None = None, out: Path | None = None,
) -> None:  # fmt: skip
    """Raise, set, scale or ablate features and see what becomes of rewards, or of what a language model writes.

    With --text and --answer, the reward of that answer; with --text alone, a language model's answer without and with
    the intervention; else the rewards of pairs, group by group. What the SAE does not explain stays in the
    activations.

    Args:
        common: options of every command.
        model: a folder or a Hub name.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        feature: sae/latent, or sae/latent=action:amount where it differs from the others; repeat for more.
        action: add: raise by so much, firing or not; set: what it becomes; scale: multiply; ablate: it does not fire.
        amount: in units of Q_f; for scale the factor.
        where: at which tokens: response, prompt, all, or places from 0 such as 3:10,15:20.
        scan: a scan with the same SAEs, which gives Q_f.
        atlas: an atlas that gives Q_f where no scan does.
        pairs: group=file; repeat for more. Without them and without --text: those of the recipe, or the demo pairs.
        text: a prompt.
        answer: its answer, for a reward model.
        generate: most tokens of a language model's answer (64).
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn.
        seed: of the draws.
        max_length: most tokens of a text of the pairs.
        out: folder for result.json.
    """
    from seamark.diagnose import steer_answer, steer_pairs, steer_text

    recipe = the_recipe(common)
    if text is None and (answer is not None or generate is not None):
        raise ConfigError("no prompt is given", where="--text", fix="Give --text, or leave out --answer and --generate")
    if text is not None and pairs:
        raise ConfigError("a text and pairs are given", where="--text", fix="Give one or the other")
    if answer is not None and generate is not None:
        raise ConfigError("an answer is given, and another one is to be generated", where="--answer",
                          fix="Give one or the other")  # fmt: skip
    how = _how(64 if generate is None else generate, temperature, seed)
    asked = _open(model, sae, _interventions(feature, action, amount, where), scan, atlas)
    done: SteeredText | SteeredReward | SteeredPairs
    if text is None:
        done = steer_pairs(asked.model, asked.suite, asked.interventions, the_pairs(recipe, pairs), q=asked.q,
                           max_length=max_length)  # fmt: skip
        table = _pairs_table(done)
    elif answer is None:
        done = steer_text(asked.model, asked.suite, asked.interventions, text, how, q=asked.q)
        table = _text_table(done)
    else:
        done = steer_answer(asked.model, asked.suite, asked.interventions, text, answer, q=asked.q)
        table = _answer_table(done)
    done = done.model_copy(update={"caveats": asked.caveats})
    table["title"] = "\n".join([table["title"], *(f"note: {caveat}" for caveat in asked.caveats)])
    finish(done.model_dump(mode="json"), as_json=common.json, out=out, **table)


def _open(
    model: str, sae: Many, interventions: list[Intervention], scan: Path | None, atlas: Path | None
) -> _Asked:  # fmt: skip
    from seamark.atlas.store import Atlas
    from seamark.diagnose import atlas_quantiles, match_saes, other_model, scan_units
    from seamark.features import Scan
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder

    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    q: dict[str, NDArray[np.float64]] = {}
    with ExitStack() as held:
        if atlas is not None:
            opened = held.enter_context(Atlas.open(atlas))
            q |= atlas_quantiles(opened, match_saes(opened, suite), suite)
    found = None if scan is None else Scan.open(scan)
    if found is not None:
        q |= scan_units(found, suite)
    loaded = load_model(model)
    # Reads all weights once: a name does not tell them, and two names may be one model's.
    caveats = () if found is None else other_model(found, loaded.fingerprint())
    return _Asked(loaded, suite, interventions, q, caveats)


def _how(tokens: int, temperature: float, seed: int) -> Generation:
    from pydantic import ValidationError

    from seamark.model.generation import Generation

    try:
        return Generation(max_new_tokens=tokens, temperature=temperature, seed=seed)
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(first["msg"], where=f"--generate, {first['loc'][0]}", fix="See --help") from None


def _interventions(features: Many, action: Action, amount: float, where: str) -> list[Intervention]:
    from seamark.diagnose import Intervention

    if not features:
        raise ConfigError("no feature is given", where="--feature", fix="Write --feature sae/12")
    found, places = [], _where(where)
    for item in features:
        match = _FEATURE.fullmatch(item)
        if match is None or match["action"] not in (None, *get_args(Action)):
            raise ConfigError(f"{item[:200]!r} is no feature", where="--feature",
                              fix="Write --feature sae/12, or sae/12=add:2")  # fmt: skip
        found.append(Intervention(sae=match["sae"], latent=int(match["latent"]), action=match["action"] or action,
                                  amount=_amount(match["amount"], amount), where=places))  # fmt: skip
    return found


def _amount(text: str | None, otherwise: float) -> float:
    try:
        return otherwise if text is None else float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no amount", where="--feature", fix="Write a number: sae/12=add:2") from None


def _where(text: str) -> Any:
    """`response`, `prompt`, `all`, or spans `3:10,15:20`."""
    if text in ("response", "prompt", "all"):
        return text
    spans = [_SPAN.fullmatch(part.strip()) for part in text.split(",")]
    if not all(spans):
        raise ConfigError(f"{text[:200]!r} names no tokens", where="--where",
                          fix="Write response, prompt, all, or places such as 3:10,15:20")  # fmt: skip
    return tuple((int(m[1]), int(m[2])) for m in spans if m)


def _done(interventions: tuple[Intervention, ...]) -> str:
    """`sae/3 add 1, sae/4 ablate`."""
    return ", ".join(f"{i.name} {i.action}" + ("" if i.action == "ablate" else f" {i.amount:g}") for i in interventions)


def _pairs_table(done: SteeredPairs) -> dict[str, Any]:
    from seamark.show.numbers import estimate_text, number

    rows = [(g.group, str(g.n_pairs), *(estimate_text(e, "signed") for e in (g.chosen, g.rejected, g.margin)),
             g.accuracy_before, g.accuracy_after) for g in done.groups]  # fmt: skip
    title = f"{_done(done.interventions)}: change of rewards, whose standard deviation is {number(done.reward_std)}"
    if done.truncated_texts:
        title += f"; {done.truncated_texts} texts were cut"
    columns = ("group", "pairs", "chosen", "rejected", "margin", "accuracy before", "accuracy after")
    return {"title": title, "columns": columns, "rows": rows}


def _answer_table(done: SteeredReward) -> dict[str, Any]:
    from seamark.show.numbers import signed

    row = (signed(done.before), signed(done.after), signed(done.after - done.before))
    return {"title": f"{_done(done.interventions)}: {done.tokens} tokens", "rows": [row],
            "columns": ("reward before", "after", "change")}  # fmt: skip


def _text_table(done: SteeredText) -> dict[str, Any]:
    same = "the same answer" if done.differs_at is None else f"another answer from its token {done.differs_at} on"
    rows = [(c.text or "–", name, str(len(c.ids)), c.stopped)
            for name, c in (("without", done.before), ("with", done.after))]  # fmt: skip
    return {"title": f"{_done(done.interventions)}: {same}", "rows": rows,
            "columns": ("answer", "intervention", "tokens", "stopped by")}  # fmt: skip
