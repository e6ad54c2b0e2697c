"""The human check: people rate sampled features blindly, and their ratings are compared with the machine's.

SAFER (arXiv 2507.00665, METHODS §1.9) asks for more than 80 % agreement between human and LLM on 100 features and
calls more than 30 % disagreement a sign of failure. A rater gets codes and contexts; which feature a code stands for
and how the machine rated it lies in a key of its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seamark.errors import ConfigError, DataError, FormatError
from seamark.explain.agreement import Check, Comparison, Pair, checks, compare, population_agreement
from seamark.explain.rating_files import BadRow, RaterSheet, read_rater_sheet
from seamark.features.context_choice import Key
from seamark.features.context_sets import ContextHalf, FeatureContexts
from seamark.features.contexts import Context
from seamark.run import digest, disk_errors, write_atomic, write_json
from seamark.show.rating_sheet import SheetFeature, instructions, sheet_page, sheet_table
from seamark.stats import Estimate
from seamark.text.pairs import hash_unit

FORMAT_VERSION = 1
KEY, SHEET = "key.json", "sheet"
"""The key's file, and the folder beside it that the rater gets."""
SHOWN_TOP, SHOWN_LEVELS = 5, (8, 5, 2)
"""Contexts of a feature on a sheet: its strongest texts, and one of each of these levels."""
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"  # no vowels, so no words; no characters that look alike


class Rated(Protocol):
    """An explanation or a rating: `explain.records.Explanation`, `explain.ratings.Rating`."""

    @property
    def rating(self) -> int | None: ...
    @property
    def method(self) -> str: ...


class KeyEntry(BaseModel):
    """What a code stands for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    sae: str
    latent: int = Field(ge=0)
    rating: int = Field(ge=1, le=5)
    """The machine's."""


class SheetKey(BaseModel):
    """What the rater of a sheet must not see, and how its features were drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    sheet: str
    """The sheet's id: of its features, their contexts and the seed."""
    machine: str
    """Who gave the ratings: the method, and the LLM if there was one."""
    seed: int
    per_level: bool
    population: dict[int, int]
    """{rating: features that could be drawn}."""
    left_out: dict[str, int]
    """{reason: features that could not}."""
    features: tuple[KeyEntry, ...]
    """In the order of the sheet."""

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SheetKey:
        """Read `key.json`. `FormatError` on anything else."""
        fix = f"Give the {KEY} that `ratings export` wrote"
        try:
            key = cls.model_validate_json(Path(path).read_bytes())
        except OSError as e:
            raise FormatError(f"cannot be read ({e.strerror})", where=str(path), fix=fix) from e
        except ValidationError as e:
            first = e.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
            raise FormatError(f"not the key of a rating sheet ({what})", where=str(path), fix=fix) from None
        if key.format_version != FORMAT_VERSION:
            raise FormatError(f"a key of format version {key.format_version}, not {FORMAT_VERSION}", where=str(path))
        if len({entry.code.lower() for entry in key.features}) < len(key.features):
            raise FormatError("a code comes twice", where=str(path), fix=fix)
        return key


def export_sheet(
    contexts: Mapping[Key, FeatureContexts], ratings: Mapping[Key, Rated], out: str | PathLike[str], n: int = 100,
    seed: int = 0, *, per_level: bool = True,
) -> SheetKey:  # fmt: skip
    """Write a blind sheet of sampled features: `sheet/` for the rater (page, table, instructions), `key.json` for you.

    Features are drawn by a hash of their name and shown in the order of another one: neither code nor place tells
    anything. Their contexts are those they were explained from (the `explain` half).

    Args:
        contexts: {(sae id, latent): contexts}.
        ratings: explanations or ratings of the same features; those without a rating have nothing to be compared with.
        out: folder to write to.
        n: features to draw; fewer where there are fewer.
        seed: another seed draws other features and gives other codes.
        per_level: the same number of each rating as far as there are any, so that every level is seen; False: as
            they come.

    Raises:
        ConfigError: n below 1; the folder holds the key of another sheet.
        DataError: no feature has both a rating and a text in which it fires.
    """
    if n < 1:
        raise ConfigError(f"{n} features cannot be drawn", where="--n", fix="Ask for one at least")
    out = Path(out)
    levels, left_out = _candidates(contexts, ratings)
    if not levels:
        raise DataError("no feature has both a rating and a text in which it fires", where=str(out),
                        fix="Have an LLM explain and rate them, or rate them statistically (--scan)")  # fmt: skip
    drawn = _draw(levels, n, seed) if per_level else _lowest([k for keys in levels.values() for k in keys], seed)[:n]
    shown = {key: _shown_contexts(contexts[key].explain) for key in drawn}
    codes = _codes(shown, seed)
    order = sorted(drawn, key=lambda key: (hash_unit(f"order {codes[key]}", seed), codes[key]))
    entries = [{"code": codes[k], "sae": k[0], "latent": k[1], "rating": ratings[k].rating} for k in order]
    key = SheetKey(
        sheet=digest(sorted(codes.values()))[:8], machine=", ".join(sorted({_machine(ratings[k]) for k in drawn})),
        seed=seed, per_level=per_level, population={level: len(levels[level]) for level in sorted(levels)},
        left_out=left_out, features=tuple(KeyEntry.model_validate(entry) for entry in entries),
    )  # fmt: skip
    _write(key, [SheetFeature(codes[k], shown[k], contexts[k].q) for k in order], out)
    return key


def _candidates(
    contexts: Mapping[Key, FeatureContexts], ratings: Mapping[Key, Rated]
) -> tuple[dict[int, list[Key]], dict[str, int]]:
    """Features by rating, and how many cannot be shown or compared, by reason."""
    levels: dict[int, list[Key]] = {}
    left_out = Counter[str]()
    for key in dict.fromkeys((*ratings, *contexts)):
        rating = ratings[key].rating if key in ratings else None
        if rating is None:
            left_out["without a rating"] += 1
        elif key not in contexts or not _shown_contexts(contexts[key].explain):
            left_out["without a text in which it fires"] += 1
        else:
            levels.setdefault(rating, []).append(key)
    return levels, dict(left_out)


def _lowest(keys: Sequence[Key], seed: int) -> list[Key]:
    return sorted(keys, key=lambda key: (hash_unit(f"{key[0]}/{key[1]}", seed), key))


def _draw(levels: Mapping[int, Sequence[Key]], n: int, seed: int) -> list[Key]:
    """n features, one of each level in turn (5 first) until they are enough."""
    queues = {level: _lowest(levels[level], seed) for level in sorted(levels, reverse=True)}
    turns = ((place, -level, key) for level, keys in queues.items() for place, key in enumerate(keys))
    return [key for _, _, key in sorted(turns)[:n]]


def _shown_contexts(half: ContextHalf) -> tuple[Context, ...]:
    """Texts of a sheet, strongest first."""
    chosen = {c.text_id: c for c in half.top[:SHOWN_TOP]}
    for level in SHOWN_LEVELS:
        chosen |= {c.text_id: c for c in [c for c in half.levels.get(level, ()) if c.text_id not in chosen][:1]}
    return tuple(sorted((c for c in chosen.values() if c.max_activation > 0), key=lambda c: -c.max_activation))


def _codes(shown: Mapping[Key, Sequence[Context]], seed: int) -> dict[Key, str]:
    """Codes that depend on features, contexts and seed: a sheet of another export has others."""
    found: dict[Key, str] = {}
    taken: set[str] = set()
    for key in sorted(shown):
        texts = [(c.tokens, c.activations) for c in shown[key]]
        for attempt in range(1 << 20):
            code = _code(digest([seed, key, texts, attempt]))
            if code not in taken:
                break
        found[key] = code
        taken.add(code)
    return found


def _code(hexadecimal: str) -> str:
    number, letters = int(hashlib.sha256(hexadecimal.encode()).hexdigest(), 16), ""
    for _ in range(4):
        number, i = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[i]
    return f"F-{letters}"


def _machine(rated: Rated) -> str:
    model = getattr(rated, "model", None)
    return f"{rated.method} ({model})" if model else rated.method


def _write(key: SheetKey, features: Sequence[SheetFeature], out: Path) -> None:
    if (out / KEY).exists():
        older = SheetKey.load(out / KEY)
        if (older.sheet, older.features) != (key.sheet, key.features):
            raise ConfigError("the folder holds the key of another sheet, whose ratings would be lost without it",
                              where=str(out), fix="Choose another --out")  # fmt: skip
    with disk_errors(out):
        write_json(out / KEY, key)
        write_atomic(out / SHEET / "README.txt", instructions(len(features)))
        write_atomic(out / SHEET / "sheet.csv", sheet_table(features))
        write_atomic(out / SHEET / "sheet.html", sheet_page(features, key.sheet))


class Rater(BaseModel):
    """A rater's sheet, counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The file's name."""
    rated: int
    not_rated: int
    """Features left blank, absent, or in rows that could not be used."""


class RatedFeature(BaseModel):
    """A feature of the sheet with everybody's ratings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    sae: str
    latent: int
    machine: int
    raters: dict[str, int]
    comments: dict[str, str]


class Agreement(BaseModel):
    """What people and the machine say of the same features. Intervals resample features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sheet: str
    machine: str
    n_features: int
    """On the sheet."""
    raters: tuple[Rater, ...]
    overall: Comparison
    """The machine (first) against all raters together."""
    by_rater: tuple[Comparison, ...]
    between: tuple[Comparison, ...]
    """Each pair of raters."""
    population_exact: Estimate
    """Exact agreement with each level weighted as among all rated features; `overall` takes the sheet as it is."""
    checks: tuple[Check, ...]
    """METHODS §1.9, on `overall.exact`."""
    bad_rows: tuple[BadRow, ...]
    features: tuple[RatedFeature, ...]


def import_sheet(files: Sequence[str | PathLike[str]], key: SheetKey, *, draws: int = 1000, seed: int = 0) -> Agreement:
    """Compare the ratings of one or several raters with the machine's, and with each other.

    A rater is named after the file. Blank ratings are not rated. Rows with an unknown code, a rating that is no whole
    number from 1 to 5, or a code that comes again are listed in `bad_rows` and not used; where a code comes again with
    another rating, neither is.

    Args:
        files: CSV as filled in or downloaded, separated by commas, semicolons or tabs.
        key: the sheet's.
        draws: resamples of the intervals.
        seed: of the resampling.

    Raises:
        DataError: no file, one that cannot be read or is no sheet, one of another sheet, or the same one twice.
    """
    if not files:
        raise DataError("no rating sheet is given", fix="Name the CSV files that the raters sent back")
    codes = [entry.code for entry in key.features]
    sheets = [read_rater_sheet(f, name, codes) for f, name in zip(files, _rater_names(files), strict=True)]
    seen: dict[str, str] = {}
    for file, sheet in zip(files, sheets, strict=True):
        content = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if sheet.ratings and content in seen:
            raise DataError(f"the same sheet as {seen[content]}", where=str(file), fix="Give each rater's file once")
        seen[content] = str(file)
    machine = {entry.code: entry.rating for entry in key.features}
    name, pooled = f"machine: {key.machine}", [p for sheet in sheets for p in _pairs(machine, sheet.ratings)]
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    by_rater = [compare(name, s.rater, _pairs(machine, s.ratings), **options) for s in sheets]
    overall = by_rater[0] if len(sheets) == 1 else compare(name, "all raters", pooled, **options)
    return Agreement(
        sheet=key.sheet, machine=key.machine, n_features=len(key.features),
        raters=tuple(Rater(name=s.rater, rated=len(s.ratings), not_rated=len(codes) - len(s.ratings)) for s in sheets),
        overall=overall, by_rater=tuple(by_rater),
        between=tuple(compare(a.rater, b.rater, _pairs(a.ratings, b.ratings), **options)
                      for i, a in enumerate(sheets) for b in sheets[i + 1:]),
        population_exact=population_agreement(pooled, key.population, **options), checks=checks(overall),
        bad_rows=tuple(row for s in sheets for row in s.bad),
        features=tuple(_rated_feature(entry, sheets) for entry in key.features),
    )  # fmt: skip


def _rated_feature(entry: KeyEntry, sheets: Sequence[RaterSheet]) -> RatedFeature:
    raters = {s.rater: s.ratings[entry.code] for s in sheets if entry.code in s.ratings}
    comments = {s.rater: s.comments[entry.code] for s in sheets if s.comments.get(entry.code)}
    return RatedFeature(code=entry.code, sae=entry.sae, latent=entry.latent, machine=entry.rating, raters=raters,
                        comments=comments)  # fmt: skip


def _pairs(first: Mapping[str, int], second: Mapping[str, int]) -> list[Pair]:
    return [Pair(code, first[code], second[code]) for code in first if code in second]


def _rater_names(files: Sequence[str | PathLike[str]]) -> list[str]:
    """File names without suffix, numbered where one comes again."""
    found: list[str] = []
    for file in files:
        stem, count = Path(file).stem, 2
        name = stem
        while name in found:
            name, count = f"{stem} ({count})", count + 1
        found.append(name)
    return found
