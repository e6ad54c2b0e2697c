"""An atlas as a folder of HTML pages that open without a server, to share: overview, lists, a page per feature,
landscape and search.

Nothing is loaded from a network. Scripts read their data from scripts beside them, since pages of a folder may not
fetch; a policy in every page forbids all else. Names of files are made of numbers alone, whatever ids hold. Texts of
features with a tag or a high safety rating, and all texts of data sets, are blurred until they are clicked.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seamark.atlas.exporting import whole_folder
from seamark.atlas.records import Card, FeatureDetail, Histogram, Overview, Query, State, StoredContext
from seamark.atlas.store import Atlas
from seamark.errors import ConfigError
from seamark.run import progress
from seamark.show.figures import Chart
from seamark.show.histograms import bin_figure
from seamark.show.html import environment, render, visible
from seamark.show.tokens import token_view

KIND = "site"
NAV = (("index.html", "Overview"), ("lists/all-1.html", "Features"), ("search.html", "Search"),
       ("landscape.html", "Landscape"))  # fmt: skip
LIMIT = 20_000
"""Features with a page, unless asked otherwise."""
CONTEXTS = 30
PER_PAGE = 120
"""Features of a page of a list."""
CHUNK = 2000
"""Features of a file that search reads."""
MAX_WORDS = 2000
"""Characters of a feature's explanations that search looks into."""
MAX_NAME = 200
"""Characters of the name of an autoencoder or a domain."""
SENSITIVE_RATING = 4
NO_DOMAIN = 255
_KINDS = {"top": "Strongest", "near_miss": "Near misses: alike, but silent", "silent": "Silent"}


class Entry(NamedTuple):
    """A feature with a page, as lists show it."""

    id: int
    sae: str
    number: int
    """Of its autoencoder."""
    latent: int
    state: State | None
    label: str | None
    domains: tuple[str, ...]
    score: float | None
    rating: int | None
    sign: int | None

    @property
    def path(self) -> str:
        return f"features/{self.number}/{self.latent}.html"

    @property
    def sensitive(self) -> bool:
        return _is_sensitive(self)


class Listed(NamedTuple):
    """A list of features."""

    path: str
    features: int


@dataclass(frozen=True)
class Lists:
    """Where the lists begin."""

    domains: dict[str, Listed]
    saes: dict[int, Listed]


@dataclass(frozen=True)
class Site:
    """What every page shows."""

    title: str
    nav: tuple[tuple[str, str], ...]
    """(path, name)"""


def export_site(
    atlas: Atlas,
    folder: Path,
    *,
    limit: int = LIMIT,
    query: Query | None = None,
    contexts: int = CONTEXTS,
    title: str = "Atlas",
) -> Path:
    """Write the pages into `folder`, whole or not at all; an earlier site in it is replaced.

    Features without a page count on the overview, and are named where they are neighbours.

    Args:
        limit: features with a page, those with the best scores.
        query: which features; by default those that are explained, or all if none is.
        contexts: texts on a feature's page.
        title: of the site.

    Returns:
        The page to open.

    Raises:
        ConfigError: `folder` holds something else, or no feature is found.
        RunError: the disk is full or cannot be written.
    """
    overview = atlas.overview()
    choice = query or Query(explained=True if overview.explained else None)
    numbers = {sae.id: sae.number for sae in overview.saes}
    entries = list(itertools.islice(_entries(atlas, choice, numbers), max(0, limit)))
    if not entries:
        raise ConfigError("no feature to show", where=str(atlas.path), fix="Ask for other features, or fill the atlas")
    layouts = atlas.layouts()
    site = Site(title, NAV if layouts else NAV[:-1])
    with whole_folder(folder, KIND) as partial:
        writer = _Writer(atlas, partial, site, overview, entries)
        writer.write(_narrowed(choice, entries), layouts, contexts, _told(query, overview, len(entries)))
    return folder / "index.html"


def _entries(atlas: Atlas, query: Query, numbers: dict[str, int]) -> Iterator[Entry]:
    """Features by score, best first."""
    step = 500
    for offset in itertools.count(0, step):
        page = query.model_copy(update={"sort": "score", "descending": True, "offset": offset, "limit": step})
        cards = atlas.find(page).cards
        yield from (_entry(card, numbers[card.sae]) for card in cards)
        if len(cards) < step:
            return


def _entry(card: Card, sae: int) -> Entry:
    return Entry(card.id, card.sae, sae, card.latent, card.state, card.label, card.domains, card.score, card.rating,
                 card.sign)  # fmt: skip


def _narrowed(query: Query, entries: Sequence[Entry]) -> Query:
    """A query that finds the entries and, where not all features are shown, few others."""
    least = entries[-1].score
    return query if least is None else query.model_copy(update={"min_score": least})


def _is_sensitive(card: Card | Entry) -> bool:
    return bool(card.domains) or (card.rating or 0) >= SENSITIVE_RATING


def _told(query: Query | None, overview: Overview, shown: int) -> str:
    if query is not None:
        return "those that were asked for"
    if not overview.explained:
        return "none is explained"
    if shown < overview.explained:
        return f"the {shown:,} of the {overview.explained:,} explained ones that have the best scores"
    return "those that are explained"


class _Writer:
    """Writes the site's files."""

    def __init__(self, atlas: Atlas, folder: Path, site: Site, overview: Overview, entries: Sequence[Entry]) -> None:
        self.atlas, self.folder, self.site, self.overview, self.entries = atlas, folder, site, overview, entries
        self.by_id = {entry.id: entry for entry in entries}
        self.rows: dict[int, int] = {}
        """{feature: its row in what search reads}"""
        self.domains = {d: i for i, d in enumerate(sorted({d for entry in entries for d in entry.domains}))}
        """{domain: its number on this site}"""

    def write(self, query: Query, layouts: Sequence[str], contexts: int, choice: str) -> None:
        self._assets()
        self._features(query, contexts)
        lists = self._lists()
        scores = _figure(self.overview.score_histogram, "Scores of explanations", "score", "features")
        self._page(
            "index.html", "site/index.html", o=self.overview, lists=lists, shown=len(self.entries), choice=choice,
            models=", ".join(self.overview.models), scores=scores, layer_domains=_crossed(self.overview),
        )  # fmt: skip
        self._page("search.html", "site/search.html")
        saes = {str(sae.number): visible(sae.id[:MAX_NAME]) for sae in self.overview.saes if sae.number in lists.saes}
        about = {"chunks": -(-len(self.rows) // CHUNK), "size": CHUNK, "saes": saes,
                 "domains": [visible(domain[:MAX_NAME]) for domain in self.domains]}  # fmt: skip
        self._script("data/site.js", "seamarkAbout", about)
        if layouts:
            self._page("landscape.html", "site/landscape.html", layouts=layouts)
            for n, name in enumerate(layouts):
                self._script(f"data/points-{n}.js", "seamarkPoints", n, self._points(name))

    def _write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _page(self, path: str, template: str, **data: Any) -> None:
        root = "../" * path.count("/")
        self._write(path, render(template, site=self.site, root=root, here=path, **data))

    def _script(self, path: str, function: str, *arguments: Any) -> None:
        """A script that hands over data; ASCII, so that no character of theirs can end or bend it."""
        given = ",".join(json.dumps(a, ensure_ascii=True, allow_nan=False, separators=(",", ":")) for a in arguments)
        self._write(path, f"{function}({given});\n")

    def _assets(self) -> None:
        self._write("assets/site.css", _source("page.css") + _source("site/site.css"))
        for name in ("site.js", "landscape.js"):
            self._write(f"assets/{name}", _source(f"site/{name}"))

    def _features(self, query: Query, contexts: int) -> None:
        """The pages, and what search reads: by autoencoder and latent, the order in which an atlas gives them away."""
        rows: list[list[Any]] = []

        def hand_over() -> None:
            n = (len(self.rows) - 1) // CHUNK
            self._script(f"data/index-{n}.js", "seamarkIndex", n, rows)
            rows.clear()

        with progress("pages", len(self.entries), "features") as advance:
            for feature in self.atlas.iter_features(query):
                entry = self.by_id.get(feature.card.id)
                if entry is None:
                    continue
                texts = self.atlas.contexts(entry.sae, entry.latent, limit=contexts) if contexts > 0 else []
                self._feature(entry, feature, texts)
                self.rows[entry.id] = len(self.rows)
                rows.append(self._row(entry, feature))
                if len(rows) == CHUNK:
                    hand_over()
                advance(1)
        if rows:
            hand_over()

    def _feature(self, entry: Entry, feature: FeatureDetail, texts: Sequence[StoredContext]) -> None:
        near = [(n, other.path if (other := self.by_id.get(n.card.id)) else None, _is_sensitive(n.card))
                for n in feature.neighbours]  # fmt: skip
        self._page(
            entry.path, "site/feature.html", f=feature, sensitive=entry.sensitive, neighbours=near,
            contexts=list(_by_kind(texts, feature.card.q)), list_path=f"lists/sae-{entry.number}-1.html",
            histogram=_figure(feature.histogram, "Activations above 0", "activation", "tokens", log=True),
        )  # fmt: skip

    def _row(self, entry: Entry, feature: FeatureDetail) -> list[Any]:
        """What search knows of a feature, in the order in which `site.js` names it."""
        said = "\n".join(e.text for e in feature.explanations if e.state == "text" and e.text)[:MAX_WORDS]
        names = f"{feature.card.layer}_{entry.latent} #{entry.latent} {entry.sae[:MAX_NAME]} {' '.join(entry.domains)}"
        words = visible(f"{names[:MAX_WORDS]}\n{said}".lower())
        label = visible((entry.label or "")[:300]) if entry.state == "text" else ""
        return [
            entry.number, entry.latent, label, entry.state, [self.domains[d] for d in entry.domains],
            None if entry.score is None else round(entry.score, 3), entry.rating, words,
            entry.sensitive,
        ]  # fmt: skip

    def _lists(self) -> Lists:
        self._list("all", "Features", self.entries)
        domains: dict[str, list[Entry]] = {}
        saes: dict[int, list[Entry]] = {}
        for entry in self.entries:
            saes.setdefault(entry.number, []).append(entry)
            for domain in entry.domains:
                domains.setdefault(domain, []).append(entry)
        return Lists(
            {domain: self._list(f"domain-{self.domains[domain]}", domain, found) for domain, found in domains.items()},
            {n: self._list(f"sae-{n}", found[0].sae, found) for n, found in saes.items()},
        )

    def _list(self, stem: str, title: str, entries: Sequence[Entry]) -> Listed:
        pages = -(-len(entries) // PER_PAGE)
        for page in range(1, pages + 1):
            first = (page - 1) * PER_PAGE
            self._page(
                f"lists/{stem}-{page}.html", "site/list.html", title=title, stem=stem, page=page, pages=pages,
                total=len(entries), first=first + 1, entries=entries[first : first + PER_PAGE],
            )  # fmt: skip
        return Listed(f"lists/{stem}-1.html", len(entries))

    def _points(self, layout: str) -> dict[str, str]:
        """Places of the features that have a page, as integers in base64, little-endian."""
        points = self.atlas.points(layout)
        kept = np.asarray([i for i, feature in enumerate(points.ids.tolist()) if feature in self.rows], np.int64)
        ids = points.ids[kept].tolist()
        rank = {entry.id: i for i, entry in enumerate(self.entries)}
        entries = [self.by_id[i] for i in ids]
        first = [entry.domains[0] if entry.domains else "" for entry in entries]
        domain = [min(self.domains.get(d, NO_DOMAIN), NO_DOMAIN) for d in first]
        return {
            "x": _packed(_whole(points.x[kept], points.x[kept], points.y[kept])),
            "y": _packed(_whole(points.y[kept], points.x[kept], points.y[kept])),
            "row": _packed(np.asarray([self.rows[i] for i in ids], "<u4")),
            "rank": _packed(np.asarray([rank[i] for i in ids], "<u4")),
            "domain": _packed(np.asarray(domain, np.uint8)),
            "sae": _packed(np.asarray([entry.number for entry in entries], "<u2")),
        }


def _figure(histogram: Histogram | None, title: str, x_label: str, unit: str, *, log: bool = False) -> Chart | None:
    """The histogram as a figure; None where nothing was counted."""
    if histogram is None:
        return None
    return bin_figure(title, histogram.edges, histogram.counts, x_label=x_label, unit=unit, log=log)


def _by_kind(texts: Sequence[StoredContext], q: float | None) -> Iterator[tuple[str, list[Any]]]:
    """(heading, [(view of tokens, name, peak)]) by kind and level, in the order in which they come."""
    for (kind, level), some in itertools.groupby(texts, key=lambda text: (text.kind, text.level)):
        views = [(token_view(t.tokens, t.activations, unit=q), t.name, t.peak) for t in some]
        yield _KINDS.get(kind, f"Level {level} of 10"), views


def _crossed(overview: Overview) -> dict[str, Any] | None:
    """Layers by domains, as a table."""
    if not overview.layer_domains:
        return None
    columns = [domain.name for domain in overview.domains]
    counts = {(layer, domain): count for layer, domain, count in overview.layer_domains}
    layers = list(dict.fromkeys(layer for layer, _, _ in overview.layer_domains))
    return {"columns": columns, "rows": [(layer, [counts.get((layer, c), 0) for c in columns]) for layer in layers]}


def _whole(values: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Coordinates from 0 to 65,535, both axes on one scale, in the middle of the square."""
    if not len(values):
        return np.zeros(0, "<u2")
    span = max(float(np.ptp(x)), float(np.ptp(y))) or 1.0
    middle = (float(values.min()) + float(values.max())) / 2
    return np.clip(np.rint(((values - middle) / span + 0.5) * 65535), 0, 65535).astype("<u2")


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _source(name: str) -> str:
    """A style or script of this package as it is; it holds no data."""
    loader = environment().loader
    if loader is None:
        raise RuntimeError("templates have no loader")
    return loader.get_source(environment(), name)[0]
