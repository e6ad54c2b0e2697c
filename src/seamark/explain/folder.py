"""The folder of `seamark explain`: contexts, explanations, and a manifest that says what they were made from.

The manifest holds digests of both files, so that a reader can tell whether they belong together, whenever writing was
broken off. Results of other settings are never written over unless that is asked for.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from seamark.errors import ConfigError, DataError, FormatError, RunError
from seamark.explain.dimension import SAFETY, Dimension
from seamark.explain.explaining import NO_CONTEXTS, prompt_version
from seamark.explain.records import Explanation, Key, Method, read_explanations, write_explanations
from seamark.explain.taxonomy import Taxonomy
from seamark.features.context_choice import ContextConfig
from seamark.run import digest, disk_errors, file_digest, read_json, versions, write_json

FORMAT_VERSION = 1
MANIFEST, CONTEXTS, EXPLANATIONS = "explained.json", "contexts.jsonl", "explanations.jsonl"
_OVERWRITE = "Choose another --out, or give up what is there with --overwrite"


class Settings(BaseModel):
    """What explanations were made from and how, but for the features: results of other settings do not mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: str
    """Key of the scan."""
    contexts: ContextConfig
    method: Method
    model: str | None
    """The LLM; None for the lexical explainer."""
    prompt_version: str
    language: str
    taxonomy: str
    """Its digest."""
    promoted: bool
    """Whether promoted and suppressed tokens were at hand."""

    @classmethod
    def of(
        cls, scan: str, contexts: ContextConfig, llm: str | None, language: str, taxonomy: Taxonomy, *, promoted: bool,
        dimension: Dimension = SAFETY,
    ) -> Settings:  # fmt: skip
        """Settings of a run with the named LLM, or without one."""
        return cls(
            scan=scan, contexts=contexts, method="llm" if llm else "lexical", model=llm,
            prompt_version=prompt_version(dimension) if llm else "", language=language if llm else "en",
            taxonomy=digest(taxonomy), promoted=promoted,
        )  # fmt: skip


class Manifest(BaseModel):
    """What a folder of explanations holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Digest of settings and features: equal for equal results."""
    settings: Settings
    features: dict[str, tuple[int, ...]]
    """{sae id: latents}, in the order of the files."""
    scan: str
    """Where the scan lay."""
    files: dict[str, str]
    """{file: SHA-256}."""
    versions: dict[str, str]
    """Of Seamark and of the packages it rests on."""
    format_version: int = FORMAT_VERSION


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none. `FormatError` where it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = Manifest.model_validate(read_json(path))
    except (ValidationError, RunError) as e:
        raise FormatError("not the manifest of explanations", where=str(path), fix="Explain again") from e
    if found.format_version != FORMAT_VERSION:
        raise FormatError(f"format version {found.format_version}, not {FORMAT_VERSION}", where=str(path),
                          fix="Explain again")  # fmt: skip
    return found


def check_folder(folder: Path) -> Manifest | None:
    """The manifest of a folder whose contexts and explanations belong together; None: nothing says so, nor denies it.

    Raises:
        DataError: they are not the files that the manifest names.
    """
    manifest = read_manifest(folder)
    if manifest is not None and (strange := _strange(folder, manifest)):
        raise DataError(f"{' and '.join(strange)} and {MANIFEST} do not belong together", where=str(folder),
                        fix="Run explain again: it was broken off, or a file was changed")  # fmt: skip
    return manifest


def _strange(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing, or others than the manifest's."""
    return [name for name, expected in manifest.files.items()
            if not (folder / name).is_file() or file_digest(folder / name) != expected]  # fmt: skip


def earlier(
    folder: Path, settings: Settings, features: Mapping[str, Sequence[int]], *, overwrite: bool = False
) -> dict[Key, Explanation]:
    """Explanations that an earlier run with the same settings left whole, of any features; none where there are none.

    Raises:
        ConfigError: the folder holds something that would be lost: results of other settings, of features that are not
            among `features`, or of another command. Never with `overwrite`.
    """
    try:
        manifest = read_manifest(folder)
    except FormatError:
        if not overwrite:
            raise
        return {}
    if not overwrite and (why := _in_the_way(folder, manifest, settings, features)):
        raise ConfigError(f"the folder holds {why}", where=str(folder), fix=_OVERWRITE)
    if manifest is None or manifest.settings != settings or _strange(folder, manifest):
        return {}
    return read_explanations(folder / EXPLANATIONS)


def _in_the_way(
    folder: Path, manifest: Manifest | None, settings: Settings, features: Mapping[str, Sequence[int]]
) -> str:
    """What would be lost; empty where nothing would."""
    if manifest is None:
        found = [name for name in (CONTEXTS, EXPLANATIONS, "result.json") if (folder / name).exists()]
        return f"{found[0]}, and no {MANIFEST} says what it was made from" if found else ""
    old, new = manifest.settings.model_dump(mode="json"), settings.model_dump(mode="json")
    if other := [name for name in new if old[name] != new[name]]:
        return f"results made in another way (other {', '.join(other)})"
    lost = sum(len({*latents} - {*features.get(sae_id, ())}) for sae_id, latents in manifest.features.items())
    return f"results of {lost:,} features that are not asked for now" if lost else ""


def keep_good(
    found: Mapping[Key, Explanation], old: Mapping[Key, Explanation]
) -> tuple[dict[Key, Explanation], list[Key]]:
    """Explanations, with an earlier good one in the place of each that failed, and of which features these are."""
    kept = {key: old[key] for key, e in found.items() if e.failed and key in old and not old[key].failed}
    return {**found, **kept}, list(kept)


def check_any(found: Iterable[Explanation]) -> None:
    """`RunError` where a language model was asked and no request at all brought an explanation."""
    some = list(found)
    reasons = [e.reason for e in some if e.failed and e.method == "llm" and e.reason != NO_CONTEXTS]
    if reasons and all(e.failed for e in some):
        commonest = max(dict.fromkeys(reasons), key=reasons.count)
        what = f"none of {len(reasons):,} requests brought an explanation ({commonest})"
        raise RunError(what, where=some[0].model or "",
                       fix="Nothing was written. Look at server, budget and model, then run again, with --retry-failed "
                           "where answers came")  # fmt: skip


@contextlib.contextmanager
def drafts(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to write into first; gone at the end."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = tempfile.TemporaryDirectory(dir=folder, prefix=".explain-", ignore_cleanup_errors=True)
    with draft as name:
        yield Path(name)


def publish(
    draft: Path, folder: Path, explanations: Iterable[Explanation], settings: Settings,
    features: Mapping[str, Sequence[int]], scan: Path,
) -> Manifest:  # fmt: skip
    """Write explanations beside the contexts in `draft`, then bring all into `folder`, the manifest first: as long as
    not all files are there, `check_folder` says so, and a rerun knows what it goes on with."""
    with disk_errors(folder):
        write_explanations(draft / EXPLANATIONS, explanations)
        listed = {sae_id: tuple(latents) for sae_id, latents in features.items()}
        manifest = Manifest(
            key=digest({"settings": settings, "features": listed}), settings=settings, features=listed, scan=str(scan),
            files={name: file_digest(draft / name) for name in (CONTEXTS, EXPLANATIONS)}, versions=versions(),
        )  # fmt: skip
        write_json(draft / MANIFEST, manifest)
        for name in (MANIFEST, CONTEXTS, EXPLANATIONS):
            (draft / name).replace(folder / name)
    return manifest
