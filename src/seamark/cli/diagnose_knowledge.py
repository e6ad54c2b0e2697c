"""`seamark diagnose knowledge`: features that tell entities a model knows from ones it does not."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from seamark.cli.options import Common, Many, named_saes, the_recipe
from seamark.cli.output import finish

if TYPE_CHECKING:
    from seamark.diagnose.entities import EntityTexts
    from seamark.diagnose.knowledge import KnowledgeFeature, KnowledgeReport

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
COLUMNS = ("feature", "fires for", "known", "unknown", "difference", "AUROC [95 %]", "q", "q, controlled", "adds",
           "beyond frequency and length")  # fmt: skip


def diagnose_knowledge(
    common: Shared, model: str, entities: Many, sae: Many = (), template: str = "{entity}", corpus: Many = (),
    corpus_column: str = "text", scan: Path | None = None, atlas: Path | None = None, entity_column: str = "entity",
    text_column: str = "text", known_column: str = "known", frequency_column: str = "frequency",
    question_column: str = "question", answers_column: str = "answers", chat: Literal["auto", "yes", "no"] = "auto",
    new_tokens: int = 16,
    least: int = 10, fdr: float = 0.05, draws: int = 1000, seed: int = 0, max_length: int | None = None, top: int = 30,
    out: Path | None = None,
) -> None:  # fmt: skip
    """Find features that tell entities a model knows from ones it does not, beyond how frequent and long the names are.

    Reads each feature at the last token of the name. Which entities are known is in the file, or a causal language
    model is asked: rows with a question and answers. Writes result.json.

    Args:
        common: options of every command.
        model: a folder or a Hub name.
        entities: JSONL, CSV or Parquet of {entity, text, known, frequency, question, answers}; repeat for more.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        template: the text of rows without one.
        corpus: texts in which the entities are counted, for their frequency; repeat for more.
        corpus_column: where the texts of the corpus are.
        scan: a scan with the same model and SAEs, which gives Q_f; without one, the entities do.
        atlas: an atlas that explains the features.
        entity_column: where the name is.
        text_column: where the text is, or a template.
        known_column: where it says whether the entity is known.
        frequency_column: where the frequency is.
        question_column: where the question is.
        answers_column: where the right answers are.
        chat: yes: ask with the chat template; no: let the model go on from the question; auto: by the tokenizer.
        new_tokens: most tokens of an answer.
        least: entities for which a feature must fire to be tested.
        fdr: share of false finds allowed.
        draws: bootstrap draws.
        seed: of folds and draws.
        max_length: most tokens; a longer text loses its beginning.
        top: features in the table.
        out: folder for result.json.
    """
    from seamark.atlas.store import Atlas
    from seamark.diagnose import EntityColumns, KnowledgeConfig, atlas_labels, knowledge, match_saes, read_entities
    from seamark.features import Scan
    from seamark.model import load_model
    from seamark.pipelines.suite import write_rejects
    from seamark.sae import SparseAutoencoder

    the_recipe(common)
    columns = EntityColumns(entity=entity_column, text=text_column, known=known_column, frequency=frequency_column,
                            question=question_column, answers=answers_column)  # fmt: skip
    texts = _counted(read_entities(entities, columns, template), corpus, corpus_column)
    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    config = KnowledgeConfig(least=least, fdr=fdr, draws=draws, seed=seed, max_length=max_length,
                             chat=None if chat == "auto" else chat == "yes", new_tokens=new_tokens)  # fmt: skip
    with ExitStack() as held:
        labels = None
        if atlas is not None:
            opened = held.enter_context(Atlas.open(atlas))
            labels = atlas_labels(opened, match_saes(opened, suite))
        done = knowledge(load_model(model), suite, texts, scan=None if scan is None else Scan.open(scan),
                         labels=labels, config=config, top=top)  # fmt: skip
    if out is not None:
        write_rejects(list(texts.rejected), out)
    finish(done.model_dump(mode="json"), as_json=common.json, out=out, title=_title(done), columns=COLUMNS,
           rows=[_row(f) for f in done.features] or [("none was tested", *[""] * 9)])  # fmt: skip


def _counted(texts: EntityTexts, corpus: Many, column: str) -> EntityTexts:
    from seamark.diagnose.entities import count_entities
    from seamark.text.corpus import stream_texts

    if not corpus:
        return texts
    return texts.with_frequency(count_entities(texts.entities, (t for _, t in stream_texts(corpus, column=column))))


def _row(f: KnowledgeFeature) -> tuple[str, ...]:
    from seamark.show.numbers import estimate_text, number

    label = f" {f.label[:60]}" if f.label else ""
    more = (number(f.q_value), number(f.controlled_q), estimate_text(f.added, "signed"))
    return (f"{f.sae}/{f.latent}{label}", str(f.fired), number(f.known), number(f.unknown),
            estimate_text(f.difference, "signed"), estimate_text(f.auroc, "number"), *more,
            _beyond(f))  # fmt: skip


def _beyond(f: KnowledgeFeature) -> str:
    if f.beyond_covariates is None:
        return f"not available: {f.no_control}"
    if f.controlled_side != f.side:
        return f"no: {f.side}, beside them {f.controlled_side}"
    return "yes" if f.beyond_covariates else "no"


def _title(done: KnowledgeReport) -> str:
    from seamark.show.numbers import estimate_text

    lines = [f"{done.known:,} known and {done.unknown:,} unknown entities in {done.texts:,} texts through {done.model}"]
    if done.asked is not None:
        a = done.asked
        lines.append(f"{a.questions:,} questions asked, {a.right:,} answered right; {a.mixed:,} entities answered in "
                     f"part are left out")  # fmt: skip
    if done.rejected or done.unread:
        lines.append(f"{done.rejected:,} rows rejected; in {done.unread:,} texts the entity cannot be read")
    lines += [f"{s.id} at {s.hookpoint}: {s.with_q:,} of {s.d_sae:,} features have a Q_f, from {s.q_from}"
              for s in done.saes]  # fmt: skip
    turned = f", {done.apart_otherwise:,} turn to the other side" if done.apart_otherwise else ""
    lines.append(f"{done.tested:,} features tested, {done.apart:,} tell them apart, {done.apart_controlled:,} beyond "
                 f"{', '.join(done.covariates)}; of {done.tested - done.controlled:,} too little is left to test them "
                 f"beside these{turned}")  # fmt: skip
    lines.append(f"AUROC on entities held out: {', '.join(done.covariates)} alone "
                 f"{estimate_text(done.covariates_auroc, 'number')}; the one best feature "
                 f"{estimate_text(done.held_out, 'number')}")  # fmt: skip
    return "\n".join([*lines, *(f"note: {caveat}" for caveat in done.caveats)])
