"""`seamark explain`: what features stand for, by a language model or, without one, by their words."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from seamark.cli.options import Common, Many, named_saes
from seamark.cli.output import finish
from seamark.errors import ConfigError
from seamark.run import versions

if TYPE_CHECKING:
    from seamark.explain.dimension import Dimension
    from seamark.explain.ledger import Ledger
    from seamark.explain.llm import LLM, CostEstimate
    from seamark.explain.records import Explanation, Key
    from seamark.explain.taxonomy import Taxonomy
    from seamark.features import ContextConfig, FeatureContexts, Promoted, Scan
    from seamark.model import HookedModel
    from seamark.sae import SparseAutoencoder

    Prepared = tuple[dict[Key, FeatureContexts], dict[Key, Promoted]]

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
ANSWERS = "answers.sqlite"
BLOCK = 256
"""Features whose texts are in memory together."""
SHOWN = 15
"""Explanations that are printed."""
LEXICAL = "No LLM was given (--llm), so the lexical explainer was used."


@dataclass(frozen=True)
class AskOptions:
    """Which language model is asked, and what it may cost."""

    llm: str | None = None
    """Name of the language model on its server; without it, nothing is asked and everything is done lexically."""
    base_url: str | None = None
    """A server that speaks OpenAI's protocol, such as http://localhost:8000/v1; else OPENAI_BASE_URL, or OpenAI's."""
    api_key_env: str = "OPENAI_API_KEY"
    """NAME of the environment variable that holds the key."""
    budget: float | None = None
    """Stop before more money than this is spent, all that was spent on the same cache before included."""
    budget_tokens: int | None = None
    """Stop before more tokens than this are sent and received, all of the same cache included."""
    prices: Path | None = None
    """A price table (YAML) of your own, in front of the packaged one."""
    cache: Path | None = None
    """File of answers that are paid; without it, answers.sqlite in the folder of the results."""
    concurrency: int = 32
    """Most requests in flight."""
    timeout_s: float = 120.0
    """Seconds to wait for an answer."""
    reasoning_tokens: int = 0
    """Tokens that a model may think before each answer, beyond the answer's own. With more of them, only answers that
    were cut off are asked again."""
    retry_failed: bool = False
    """Ask again what brought only unusable answers before; all else stays as it was paid."""
    cache_tag: str = ""
    """Keeps answers apart of servers, or versions, that have a model of the same name: others than this tag's are not
    found."""
    dry_run: bool = False
    """Say what would be asked and what it is expected to cost, ask nothing and write no results."""


Ask = Annotated[AskOptions, tyro.conf.OmitArgPrefixes]


class Asked(NamedTuple):
    """A language model and its books."""

    llm: LLM
    ledger: Ledger


def explain(
    common: Shared, ask: Ask, scan: Path, out: Path, sae: str | None = None, features: Path | None = None,
    latents: tuple[int, ...] = (), n: int = 200, seed: int = 0, group: str | None = None, language: str = "en",
    taxonomy: Path | None = None, model: str | None = None, suite: Many = (), overwrite: bool = False,
    dimension: Path | None = None,
) -> None:  # fmt: skip
    """Explain features from texts of a scan: a sentence, tags and a safety rating for each.

    Writes explanations.jsonl, result.json, contexts.jsonl, whose other half of the texts is for `simulate`, and
    explained.json, which says what all of it was made from. Without --llm the words that go with a feature stand for
    its explanation. Run again after a break, for more features, or with a larger budget, it asks only for what is
    missing.

    Args:
        common: options of every command.
        ask: the language model.
        scan: the scan's folder.
        out: folder for the results.
        sae: which SAE of the scan; not needed where there is one.
        features: a feature set (JSON), such as contrast writes it.
        latents: latents to explain, by number.
        n: without features or latents: how many, drawn from all that fire often enough to have a Q_f.
        seed: of that draw, and of the choice of texts.
        group: choose texts of this group only; without it, of all.
        language: code of the language to explain in.
        taxonomy: a YAML file of domains and concepts to tag with, added to the ones there are.
        model: the scan's model, a folder or a Hub name: for the tokens a feature promotes (language models), and where
            the scan kept no latents of single tokens.
        suite: with --model, the scan's SAEs as name=folder; repeat for each.
        overwrite: give up what the folder holds of another scan, model or way, or of features not asked for now.
        dimension: rate features for this instead of safety: a YAML file with name, group and question.
    """
    from seamark.explain import folder
    from seamark.explain.dimension import SAFETY, Dimension
    from seamark.explain.lexical import CAVEAT
    from seamark.explain.taxonomy import Taxonomy
    from seamark.features import ContextConfig, Scan

    about_what = SAFETY if dimension is None else Dimension.load(dimension)
    if dimension is not None and ask.llm is None:
        raise ConfigError("only a language model rates for a dimension, and none is named", where="--dimension",
                          fix="Write --llm NAME")  # fmt: skip
    opened, config = Scan.open(scan), ContextConfig(group=group, seed=seed)
    tags = Taxonomy.default() if taxonomy is None else Taxonomy.load(taxonomy, extend=True)
    chosen = _chosen(opened, sae, features, latents, n, seed)
    with asked(ask, out) as asking:
        llm = asking.llm if asking else None
        blocks, why_not = _prepared(opened, chosen, config, model, suite)
        if llm is not None and ask.dry_run:
            _show_estimate(llm, *_at_once(blocks), tags, language, about_what, common)
            return
        settings = folder.Settings.of(opened.manifest["key"], config, llm.name if llm else None, language, tags,
                                      promoted=model is not None and not why_not, dimension=about_what)  # fmt: skip
        old = folder.earlier(out, settings, chosen, overwrite=overwrite)
        with folder.drafts(out) as draft:
            new = _explained(blocks, draft / folder.CONTEXTS, llm, tags, language, about_what)
            found, kept = folder.keep_good(new, old)
            folder.check_any(found.values())
            manifest = folder.publish(draft, out, found.values(), settings, chosen, scan)
        books = spent(asking.ledger) if asking else None
    notes = [why_not] if why_not else []
    if kept:
        notes.append(f"{len(kept):,} explanations are of an earlier run: asked again, these features failed.")
    if llm is None:
        notes += [LEXICAL, CAVEAT, *(["Its explanations are in English."] if language != "en" else [])]
    about = {"scan": str(scan), "group": group, "seed": seed, "key": manifest.key, "settings": settings, "kept": kept,
             "dimension": about_what.name, "versions": versions()}  # fmt: skip
    _show(about | summary(found.values()) | {"notes": notes, "cost": books}, found, common, out)


def _chosen(
    scan: Scan, sae: str | None, features: Path | None, latents: Sequence[int], n: int, seed: int
) -> dict[str, list[int]]:
    """{sae id: latents, each once}."""
    from seamark.explain.explaining import draw_features
    from seamark.features import FeatureSet

    if features is not None and (latents or sae):
        raise ConfigError("a feature set names SAEs and latents itself", where="--features",
                          fix="Leave out --sae and --latents")  # fmt: skip
    if features is None:
        return {scan.sae_id(sae): list(dict.fromkeys(latents))} if latents else draw_features(scan, sae, n, seed)
    found = FeatureSet.load(features)
    if not found.features:
        raise ConfigError("the feature set is empty", where=str(features), fix="Choose one with features")
    return {scan.sae_id(name): list(dict.fromkeys(found.latents(name)))
            for name in dict.fromkeys(f.sae for f in found.features)}  # fmt: skip


def _prepared(
    scan: Scan, chosen: Mapping[str, Sequence[int]], config: ContextConfig, model: str | None, suite: Many
) -> tuple[Iterator[Prepared], str]:
    """Contexts and promoted tokens, `BLOCK` features at a time; and why there are no such tokens though a model is
    given."""
    from seamark.features import context_sets
    from seamark.model import LanguageModel, load_model
    from seamark.sae import SparseAutoencoder

    blocks = [{sae_id: latents[start : start + BLOCK]} for sae_id, latents in chosen.items()
              for start in range(0, len(latents), BLOCK)]  # fmt: skip
    if model is None:
        if suite:
            raise ConfigError("SAEs are given without their model", where="--suite", fix="Give --model too")
        return ((context_sets(scan, block, config), {}) for block in blocks), ""
    try:
        saes = {name: SparseAutoencoder.from_pretrained(path) for name, path in named_saes(suite).items()}
    except ConfigError as e:
        raise ConfigError(e.what, where="--suite", fix=e.fix.replace("--sae", "--suite")) from None
    loaded = load_model(model)
    found = (context_sets(scan, block, config, model=loaded, suite=saes) for block in blocks)
    if not isinstance(loaded, LanguageModel):
        return ((contexts, {}) for contexts in found), f"{loaded.name} has no unembedding: no promoted tokens."
    return ((contexts, _promoted(scan, list(contexts), loaded, saes)) for contexts in found), ""


def _at_once(blocks: Iterator[Prepared]) -> Prepared:
    """All blocks, without the half of the texts that an explainer never sees."""
    from seamark.features import ContextHalf

    contexts: dict[Key, FeatureContexts] = {}
    promoted: dict[Key, Promoted] = {}
    for some, tokens in blocks:
        contexts |= {key: replace(feature, simulate=ContextHalf()) for key, feature in some.items()}
        promoted |= tokens
    return contexts, promoted


def _explained(
    blocks: Iterator[Prepared], path: Path, llm: LLM | None, tags: Taxonomy, language: str, dimension: Dimension
) -> dict[Key, Explanation]:
    """Explain block by block, and write each block's contexts to `path` before the next one."""
    from seamark.explain.explaining import explain_features
    from seamark.features import write_contexts

    found: dict[Key, Explanation] = {}

    def features() -> Iterator[FeatureContexts]:
        for contexts, promoted in blocks:
            found.update(explain_features(contexts, llm, taxonomy=tags, language=language, promoted=promoted,
                                          dimension=dimension))  # fmt: skip
            yield from contexts.values()

    write_contexts(features(), path)
    return found


def _promoted(
    scan: Scan, keys: Sequence[Key], model: HookedModel, saes: Mapping[str, SparseAutoencoder]
) -> dict[Key, Promoted]:
    from seamark.features import promoted_tokens

    if scan.manifest["choices"]["keep_tokens"] and model.fingerprint() != scan.manifest["model"]:
        raise ConfigError(f"{model.name} is not the model of the scan", where="--model",
                          fix=f"Give {scan.manifest['model_name']} as it was then")  # fmt: skip
    found: dict[Key, Promoted] = {}
    for sae_id in dict.fromkeys(sae_id for sae_id, _ in keys):
        if sae_id not in saes or saes[sae_id].fingerprint() != scan.manifest["saes"][sae_id]:
            raise ConfigError(f"the scan's SAE {sae_id!r} is not among those given", where="--suite",
                              fix=f"Write --suite {sae_id}=FOLDER, the SAE that was scanned with")  # fmt: skip
        mine = promoted_tokens(model, saes[sae_id], [latent for name, latent in keys if name == sae_id])
        found |= {(sae_id, latent): tokens for latent, tokens in mine.items()}
    return found


@contextlib.contextmanager
def asked(ask: AskOptions, out: Path) -> Iterator[Asked | None]:
    """The language model of the options, its answers kept in `out`; None where none is named.

    Raises:
        ConfigError: an option is wrong, or there are some for a language model and none is named.
    """
    from pydantic import ValidationError

    from seamark.explain.answers import AnswerCache
    from seamark.explain.ledger import Ledger
    from seamark.explain.llm import LLM, LLMConfig
    from seamark.explain.prices import PriceTable

    if ask.llm is None:
        given = [f"--{f.name.replace('_', '-')}" for f in fields(ask) if getattr(ask, f.name) != f.default]
        if given:
            raise ConfigError(f"no language model is named, but {', '.join(given)} {'is' if len(given) == 1 else 'are'}"
                              " given", where="--llm", fix="Write --llm NAME, as its server calls it")  # fmt: skip
        yield None
        return
    try:
        config = LLMConfig(base_url=ask.base_url, api_key_env=ask.api_key_env, budget=ask.budget,
                           budget_tokens=ask.budget_tokens, concurrency=ask.concurrency, timeout_s=ask.timeout_s,
                           reasoning_tokens=ask.reasoning_tokens, retry_failed=ask.retry_failed,
                           cache_tag=ask.cache_tag)  # fmt: skip
    except ValidationError as e:
        first = e.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "--llm"
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=option) from None
    prices = PriceTable.load(ask.prices)
    path = ask.cache or out / ANSWERS
    with contextlib.ExitStack() as open_until_the_end:
        if ask.dry_run and not path.exists():  # nothing is known, and nothing is to be left behind
            path = Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory())) / ANSWERS
        cache = open_until_the_end.enter_context(AnswerCache(path))
        ledger = Ledger(cache, prices)
        yield Asked(LLM(ask.llm, config=config, cache=cache, ledger=ledger, asks=not ask.dry_run), ledger)


def _show_estimate(
    llm: LLM, contexts: Mapping[Key, FeatureContexts], promoted: Mapping[Key, Promoted], tags: Taxonomy, language: str,
    dimension: Dimension, common: Common,
) -> None:  # fmt: skip
    from seamark.explain.explaining import check_answer, explain_requests

    requests = explain_requests(contexts, taxonomy=tags, language=language, promoted=promoted, dimension=dimension)
    found = llm.estimate(list(requests.values()), check_answer(tags, language, dimension))
    silent = len(contexts) - len(requests)
    rows = [
        ("features", f"{len(contexts):,}"), ("not active in their texts, not asked about", f"{silent:,}"),
        ("already answered", f"{found.cached:,}"), ("to ask", f"{found.to_ask:,}"),
        ("tokens to send, expected", f"{found.tokens_in:,}"), ("tokens to receive, expected", f"{found.tokens_out:,}"),
        *cost_rows(found),
    ]  # fmt: skip
    finish({"dry_run": True, "features": len(contexts), "silent": silent} | found.model_dump(), as_json=common.json,
           title=f"Dry run: {llm.name}", columns=("what", "value"), rows=rows)  # fmt: skip


def cost_rows(found: CostEstimate) -> list[tuple[str, str]]:
    """What asking is expected to cost, and which budgets are enough for how much of it, as a dry run prints them."""
    reason, currency = found.reason or found.spent_reason, found.currency
    return [
        ("cost, expected", _money(found.cost, currency, found.reason)),
        ("spent on this cache so far, at most", _money(found.spent, currency, found.spent_reason)),
        ("--budget that is enough if nothing has to be sent twice", _money(found.budget_once, currency, reason)),
        (f"--budget that is enough if all is asked {found.tries} times and each time sent {found.sends} times, all "
         "billed", _money(found.budget, currency, reason)),
    ]  # fmt: skip


def _money(amount: float | None, currency: str, reason: str) -> str:
    return f"not available ({reason})" if amount is None else f"{amount:.4f} {currency}"


def spent(ledger: Ledger) -> dict[str, Any]:
    """What was spent on the cache's answers, stage by stage, as results hold it. `spent` is None, with its reason,
    where it is not known."""
    return {"rows": [row.model_dump() for row in ledger.rows()], "spent": ledger.spent(),
            "spent_reason": ledger.why_not_known(), "currency": ledger.prices.currency,
            "notes": ledger.notes()}  # fmt: skip


def spent_row(books: Mapping[str, Any]) -> tuple[str, str]:
    """The line of a summary that says what was spent."""
    return "spent on this cache so far, at most", _money(books["spent"], books["currency"], books["spent_reason"])


def summary(explanations: Sequence[Explanation] | Any) -> dict[str, Any]:
    """Counts of explanations: how many there are, why others failed, tags and ratings."""
    some = list(explanations)
    good = [e for e in some if e.text is not None]
    ratings = Counter("none" if e.rating is None else str(e.rating) for e in good)
    return {
        "method": some[0].method, "model": some[0].model, "prompt_version": some[0].prompt_version,
        "language": some[0].language, "features": len(some), "explained": len(good),
        "failed": dict(Counter(e.reason for e in some if e.text is None).most_common()),
        "tagged": sum(bool(e.tags) for e in good),
        "tags": dict(Counter(str(tag) for e in good for tag in e.tags).most_common()),
        "ratings": {key: ratings.get(key, 0) for key in ("5", "4", "3", "2", "1", "none")},
        "tokens_in": sum(e.tokens_in for e in some), "tokens_out": sum(e.tokens_out for e in some),
    }  # fmt: skip


def _show(result: dict[str, Any], found: Mapping[Key, Explanation], common: Common, out: Path) -> None:
    from rich.console import Console

    from seamark.show.tables import rich_table

    good = [e for e in found.values() if e.text is not None]
    if good and not common.json:
        lines = [(f"{e.sae}/{e.latent}: {e.text}", ", ".join(map(str, e.tags)), "–" if e.rating is None else e.rating)
                 for e in good[:SHOWN]]  # fmt: skip
        title = f"Explanations ({result['method']})" + (f", {SHOWN} of {len(good):,}" if len(good) > SHOWN else "")
        Console().print(rich_table(title, ("feature", "tags", f"{result['dimension']} 1-5"), lines))
    rows = [("method", result["method"] + (f", {result['model']}" if result["model"] else "")),
            ("features", f"{result['features']:,}"), ("explained", f"{result['explained']:,}"),
            *((f"failed: {reason}", f"{n:,}") for reason, n in result["failed"].items()),
            ("with a tag", f"{result['tagged']:,}"),
            *((f"rated {key}" if key != "none" else "not rated", f"{n:,}")
              for key, n in result["ratings"].items() if n)]  # fmt: skip
    if books := result["cost"]:
        rows += [("tokens sent, received", f"{result['tokens_in']:,}, {result['tokens_out']:,}"),
                 spent_row(books)]  # fmt: skip
    rows += [("note", note) for note in (*result["notes"], *(books["notes"] if books else ()))]
    finish(result, as_json=common.json, out=out, title="Summary", columns=("what", "value"), rows=rows)
