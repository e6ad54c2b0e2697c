"""`seamark diagnose risk`: features as detectors of a domain's texts, and guards made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seamark.cli.options import Common, Many, named_saes, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError, SeamarkError

if TYPE_CHECKING:
    from seamark.diagnose.guard import Guard
    from seamark.diagnose.probes import RiskInputs
    from seamark.diagnose.risk import DetectorResult, DomainResult, RiskConfig, RiskReport, SplitResult
    from seamark.diagnose.risk_texts import LabelledTexts
    from seamark.features import Scan
    from seamark.model import HookedModel
    from seamark.sae import SparseAutoencoder

    Guards = dict[str, Guard | str]
    """{domain: its guard, or why it has none}"""

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
COLUMNS = ("domain", "split", "texts of it", "detector", "AUROC [95 %]", "in a source", "AP", "F1",
           "precision, FPR 1 %", "if 1 % are of it", "Brier", "ECE")  # fmt: skip


def diagnose_risk(
    common: Shared, texts: Many, domain: Many, out: Path, model: str | None = None, sae: Many = (),
    scan: Path | None = None, sae_id: str | None = None, text_column: str = "text", label_column: str = "label",
    source_column: str = "source", language_column: str | None = None, language: Many = (), leave_out: Many = (),
    learning: bool = True, guard: bool = True, few: bool = False, detector: str | None = None,
    max_texts: int | None = None, folds: int = 5, draws: int = 1000, seed: int = 0, max_length: int | None = None,
) -> None:  # fmt: skip
    """Judge single features, rules and sparse models as detectors of a domain's texts, and export guards.

    Beside them: a probe on raw activations, the words, a list of keywords, the length, and the source alone. Texts are
    held out within sources that hold both classes, and by whole sources of the same language. Writes result.json, the
    scan of the texts, rejected.jsonl if rows could not be used, and guards/DOMAIN for every domain, or the reason why
    it has none.

    Args:
        common: options of every command.
        texts: labelled texts: JSONL, CSV or Parquet; repeat for more.
        domain: the label to find; repeat for more.
        out: folder for the results.
        model: a folder or a Hub name; with --scan, only guards need it.
        sae: an SAE's folder, or name=folder; with --scan, only guards need it.
        scan: a scan of the same texts at all tokens with mean raw activations, made before.
        sae_id: which SAE of the scan.
        text_column: where the text is.
        label_column: where the label, or the list of labels, is.
        source_column: where the source is.
        language_column: where the language is; without it, all texts are of one language.
        language: only these languages; repeat for more.
        leave_out: a label whose texts are neither of the domain nor surely not of it; repeat for more.
        learning: also fit on growing numbers of texts.
        guard: export guards.
        few: guards that encode their few latents only, instead of exact ones.
        detector: what guards are made of: single, sparse_max (default), sparse_mean or sparse_few (default with --few).
        max_texts: most texts of each language, source and label, picked by a hash of their ids.
        folds: texts are judged in so many parts.
        draws: bootstrap draws.
        seed: of draws and learning curves.
        max_length: most tokens of a text; a longer one loses its beginning.
    """
    from seamark.diagnose.risk import risk
    from seamark.diagnose.risk_texts import RiskColumns, labels_of, read_labelled_texts
    from seamark.pipelines.suite import write_rejects
    from seamark.run import disk_errors, write_json

    the_recipe(common)
    config = _config(tuple(leave_out), tuple(language), folds, draws, seed, learning)
    _check_detector(detector)
    columns = RiskColumns(text=text_column, label=label_column, source=source_column, language=language_column)
    labelled = read_labelled_texts(texts, columns)
    if not domain:
        known = ", ".join(list(labelled.labels)[:20])
        raise ConfigError("no domain is given", where="--domain", fix=f"Labels are: {known}")
    unknown = sorted(set(language) - set(labelled.languages))
    if unknown:
        raise ConfigError(f"no text is in {unknown[0][:40]!r}", where="--language",
                          fix=f"Languages are: {', '.join(labelled.languages)}")  # fmt: skip
    labelled = labelled.counting(domain, config.leave_out, config.languages)  # what is left out need not be read
    if max_texts is not None:
        if max_texts < 1:
            raise ConfigError(f"{max_texts} texts are too few", where="--max-texts", fix="Take 1000")
        labelled = labelled.sampled(max_texts)
    for one in domain:  # before anything is read by the model
        labels_of(labelled, one)
    inner = config.model_copy(update={"leave_out": tuple(o for o in config.leave_out if o in labelled.labels)})
    asked = _opened(model, sae, scan, labelled, out, max_length, sae_id)
    if guard and asked.model is not None and asked.sae is None:
        raise ConfigError(f"no SAE is called {asked.sae_id!r}", where="--sae",
                          fix=f"Write --sae {asked.sae_id}=FOLDER, or --no-guard")  # fmt: skip
    write_rejects(list(labelled.rejected), out)
    report = risk(asked.scan, labelled, domain, sae_id=asked.sae_id, config=inner)
    result = report.model_copy(update={"config": config}).model_dump(mode="json") | {"guards": {}}
    guards: Guards = {}
    if guard and asked.model is not None:
        with disk_errors(out):  # what was judged is kept, whatever becomes of the guards
            write_json(out / "result.json", result | {"guards": {one: {"reason": "not made"} for one in domain}})
        guards = _guards(asked, report, labelled, few, detector, inner, out)
        result["guards"] = {name: {"reason": made} if isinstance(made, str) else made.about.model_dump(mode="json")
                            for name, made in guards.items()}  # fmt: skip
    rows = [row for found in report.domains for split in found.splits for row in _rows(found, split)]
    finish(result, as_json=common.json, out=out, title=_title(report, guards), columns=COLUMNS, rows=rows)


class _Asked:
    """What the command was given, opened."""

    def __init__(
        self, scan: Scan, sae_id: str, model: HookedModel | None, sae: SparseAutoencoder | None, max_length: int | None
    ) -> None:
        self.scan, self.sae_id, self.model, self.sae, self.max_length = scan, sae_id, model, sae, max_length


def _config(
    leave_out: tuple[str, ...], languages: tuple[str, ...], folds: int, draws: int, seed: int, learning: bool
) -> RiskConfig:  # fmt: skip
    from pydantic import ValidationError

    from seamark.diagnose.risk import RiskConfig

    try:
        return RiskConfig(leave_out=leave_out, languages=languages, folds=folds, draws=draws, seed=seed,
                          learning=learning)  # fmt: skip
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(first["msg"], where=f"--{first['loc'][0]}", fix="See --help") from None


def _check_detector(detector: str | None) -> None:
    linear = ("single", "sparse_max", "sparse_mean", "sparse_few")
    if detector is not None and detector not in linear:
        raise ConfigError(f"no guard can be made of {detector[:40]!r}", where="--detector",
                          fix=f"Take {', '.join(linear)}")  # fmt: skip


def _opened(
    model: str | None, sae: Many, scan: Path | None, labelled: LabelledTexts, out: Path, max_length: int | None,
    sae_id: str | None,
) -> _Asked:  # fmt: skip
    from seamark.diagnose.risk import risk_scan
    from seamark.features import Scan
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder

    if scan is None and (model is None or not sae):
        raise ConfigError("nothing reads the texts", where="--model, --sae", fix="Give both, or --scan")
    if (model is None) != (not sae):
        raise ConfigError("guards need the model and its SAE", where="--model, --sae", fix="Give both, or neither")
    suite = {n: SparseAutoencoder.from_pretrained(p) for n, p in named_saes(sae).items()} if sae else {}
    loaded = None if model is None else load_model(model)
    if scan is None:
        assert loaded is not None  # noqa: S101 - checked above; for the type checker
        found = risk_scan(loaded, suite, labelled, out / "scan", max_length=max_length)
    else:
        found = Scan.open(scan)
        _check_scan(found, loaded, suite, scan)
    chosen = found.sae_id(sae_id)
    return _Asked(found, chosen, loaded, suite.get(chosen), found.config["max_length"])


def _check_scan(
    found: Scan, model: HookedModel | None, suite: dict[str, SparseAutoencoder], path: Path
) -> None:  # fmt: skip
    """Raise `ConfigError` where a scan was made with another model, or with another autoencoder of that name."""
    if model is not None and model.fingerprint() != found.manifest["model"]:
        raise ConfigError("the scan was made with another model", where=str(path), fix="Give that model")
    for name, sae in suite.items():
        if name in found.sae_ids and sae.fingerprint() != found.manifest["saes"][name]:
            raise ConfigError(f"the scan was made with another SAE called {name!r}", where=str(path),
                              fix="Give that one")  # fmt: skip


def _guards(
    asked: _Asked, report: RiskReport, labelled: LabelledTexts, few: bool, detector: Any, config: RiskConfig, out: Path
) -> Guards:  # fmt: skip
    """The guard of each domain, written to its folder, or why it has none."""
    from seamark.diagnose.guard_making import export_guard
    from seamark.diagnose.risk import risk_inputs

    assert asked.model is not None  # noqa: S101 - checked by `diagnose_risk`; for the type checker
    assert asked.sae is not None  # noqa: S101
    x: RiskInputs = risk_inputs(asked.scan, labelled, asked.sae_id)
    guards: Guards = {}
    for found in report.domains:
        try:
            made = export_guard(
                x, found.domain, asked.model, asked.sae, sae_id=asked.sae_id, few=few, detector=detector,
                config=config, max_length=asked.max_length,
            )  # fmt: skip
        except SeamarkError as e:  # of this domain; the others go on
            guards[found.domain] = e.what
            continue
        made.save(out / "guards" / _folder(found.domain))
        guards[found.domain] = made
    return guards


def _folder(domain: str) -> str:
    """A domain's name as a folder's."""
    from urllib.parse import quote

    return quote(domain, safe="").replace(".", "%2E")


def _rows(found: DomainResult, split: SplitResult) -> list[tuple[str, ...]]:
    from seamark.show.numbers import percent

    name = " ".join(part for part in (split.language, split.scheme) if part)
    if split.reason:
        return [(found.domain, name, "–", f"not available ({split.reason})", *[""] * 8)]
    count = f"{split.positives:,} of {split.n_texts:,} ({percent(split.positives / split.n_texts, 0)})"
    return [(found.domain, name, count, *_cells(d)) for d in split.detectors]


def _cells(found: DetectorResult) -> tuple[str, ...]:
    from seamark.show.numbers import estimate_text, number

    m = found.measures
    rest = (m.auroc_within_source, m.average_precision, m.f1, m.precision_at_fpr_1,
            m.precision_at_fpr_1_if_prevalence_1, m.brier, m.ece)  # fmt: skip
    values = ("–" if e.value is None else number(e.value) for e in rest)
    return (found.detector, estimate_text(m.auroc, "number"), *values)


def _title(report: RiskReport, guards: Guards) -> str:
    from seamark.show.numbers import number, percent

    lines = [f"{report.texts:,} texts through {report.model}, {report.sae} at {report.hookpoint}"]
    if report.rejected or report.unread or report.truncated:
        lines.append(f"{report.rejected:,} rows rejected, {report.unread:,} texts without a token, "
                     f"{report.truncated:,} cut")  # fmt: skip
    for found in report.domains:
        alone = ", ".join(f"{lang + ' ' if lang else ''}{number(e.value)}" for lang, e in found.source_alone.items())
        lines.append(f"{found.domain}: {len(found.one_class)} of {len(found.sources)} sources hold one class only; "
                     f"AUROC of the source alone: {alone}")  # fmt: skip
    lines.append("precision, F1 and AP hold at the share of the domain that stands in brackets; at FPR 1 % the "
                 "threshold is read off the judged texts, and precision is told for 1 % of it too")  # fmt: skip
    for domain, guard in guards.items():
        if isinstance(guard, str):
            lines.append(f"guard {domain}: not available ({guard})")
            continue
        about = guard.about
        if about.latency is not None and about.agreement is not None:
            lines.append(f"guard {domain} ({about.kind}, {len(guard.weights.latents)} latents): "
                         f"{number(about.latency.ratio.value)} × its parts, same decision for "
                         f"{percent(about.agreement.same_decision.value)}")  # fmt: skip
    return "\n".join(lines)
