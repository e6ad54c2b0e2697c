"""Points in the plane for many vectors: which features are alike, at a glance.

A landscape is for looking, not for measuring: near points are alike, distances between far ones mean little. Vectors
are cut to their principal components, a sample of landmarks is laid out by t-SNE (Barnes-Hut), and every other point
lies among the landmarks nearest to it. Equal vectors, seeds and versions give equal points.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from seamark.errors import DataError

LANDMARKS = 4000
"""Points laid out by t-SNE, whose time grows with their number; more add little that one could see."""
COMPONENTS = 32
PERPLEXITY = 30.0
"""How many landmarks count as a landmark's surroundings."""
FEW = 10
"""Below so many points there are no surroundings to speak of: their two principal components are shown."""
AROUND = 5
"""Landmarks among which another point lies."""
SAMPLE = 10_000
"""Rows from which principal components and word weights are taken."""
HASHED = 1 << 17
"""Columns into which words and characters are hashed."""
MAX_CHARS = 2000
"""Characters of an explanation that count."""
_BLOCK = 4096
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_IS_CJK = re.compile(f"[{_CJK}]")

Floats = NDArray[np.float32]


def layout_of(vectors_ND: NDArray[np.floating], seed: int = 0) -> Floats:
    """A point for each vector [n, 2], within -1 and 1. 100,000 vectors take about as long as 4,000.

    Rows that are not finite have no place: their point is NaN. Where all vectors are equal, points fill a small disc.

    Raises:
        DataError: `vectors_ND` is no matrix.
    """
    if vectors_ND.ndim != 2:
        raise DataError(f"vectors of {vectors_ND.ndim} dimensions, not points by width")
    points = np.full((len(vectors_ND), 2), np.nan, dtype=np.float32)
    rows = _finite(vectors_ND)
    if not len(rows):
        return points
    rng = np.random.default_rng(seed)
    reduced = _reduced(vectors_ND, rows, rng)
    if not reduced.shape[1]:  # all vectors are equal
        points[rows] = _disc(len(rows))
    elif len(rows) < FEW:
        points[rows] = _scaled(_plane(reduced))
    else:
        chosen = np.sort(rng.permutation(len(rows))[:LANDMARKS])
        points[rows] = _scaled(_among(reduced, chosen, _tsne(reduced[chosen], seed), rng))
    return points


def side_by_side(groups: Sequence[Floats]) -> list[Floats]:
    """Layouts of things that cannot be compared, as tiles of one picture within -1 and 1: larger groups do not get
    more room. Points that are NaN stay so."""
    if len(groups) <= 1:
        return list(groups)
    columns = int(np.ceil(np.sqrt(len(groups))))
    lines = -(-len(groups) // columns)
    room = 2.0 / max(columns, lines)
    placed = []
    for i, points in enumerate(groups):
        line, column = divmod(i, columns)
        centre = np.asarray([column - (columns - 1) / 2, (lines - 1) / 2 - line]) * room
        placed.append((centre + points * (0.45 * room)).astype(np.float32))
    return placed


def explanation_vectors(texts: Sequence[str], languages: Sequence[str] | None = None) -> Floats:
    """What texts are about, roughly, as vectors [n, ≤ 32] of length ≤ 1: weighted words and pieces of words (single
    characters and pairs in Chinese, Japanese and Korean), hashed, then cut to their main directions.

    Texts without a word give a row of NaN.

    Args:
        languages: one for each text. The mean of each language is taken away, or languages would lie apart whatever
            their texts say.

    Raises:
        DataError: not as many languages as texts.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    if languages is not None and len(languages) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(languages)} languages")
    if not texts:
        return np.zeros((0, 1), dtype=np.float32)
    hashing = HashingVectorizer(analyzer=_pieces, n_features=HASHED, alternate_sign=False, norm=None, dtype=np.float32)
    weights = TfidfTransformer(sublinear_tf=True)
    sample = np.sort(np.random.default_rng(0).permutation(len(texts))[:SAMPLE])
    counts = hashing.transform([texts[i] for i in sample])
    if not counts.nnz:
        return np.full((len(texts), 1), np.nan, dtype=np.float32)
    svd = TruncatedSVD(n_components=max(1, min(COMPONENTS, len(sample) - 1)), random_state=0)
    with np.errstate(invalid="ignore"):  # shares of a variance that may be 0
        svd.fit(weights.fit_transform(counts))
    found = np.full((len(texts), svd.components_.shape[0]), np.nan, dtype=np.float32)
    for start in range(0, len(texts), _BLOCK):
        counts = hashing.transform(texts[start : start + _BLOCK])
        said = np.flatnonzero(np.diff(counts.indptr))
        if len(said):
            found[start + said] = svd.transform(weights.transform(counts[said]))
    return _centred(found, languages)


def _pieces(text: str) -> Iterator[str]:
    """Words and what they are made of."""
    for word in _WORDS.findall(unicodedata.normalize("NFKC", text[:MAX_CHARS]).casefold()):
        if _IS_CJK.match(word):
            yield from word
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        else:
            yield f"={word}"
            padded = f"^{word}$"
            yield from (padded[i : i + 4] for i in range(len(padded) - 3))


def _centred(found: Floats, languages: Sequence[str] | None) -> Floats:
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    found = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0) + 0 * lengths  # NaN stays NaN
    if languages is not None:
        codes = np.unique(np.asarray(languages, dtype=object).astype(str), return_inverse=True)[1]
        for code in range(codes.max() + 1):
            rows = np.flatnonzero((codes == code) & np.isfinite(found[:, 0]))
            if len(rows):
                found[rows] -= found[rows].mean(axis=0)
    return found.astype(np.float32)


def _finite(vectors_ND: NDArray[np.floating]) -> NDArray[np.int64]:
    blocks = [np.isfinite(vectors_ND[i : i + _BLOCK]).all(axis=1) for i in range(0, len(vectors_ND), _BLOCK)]
    return np.flatnonzero(np.concatenate([np.zeros(0, dtype=bool), *blocks]))


def _reduced(vectors_ND: NDArray[np.floating], rows: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Principal components of `rows`, of unit overall size; none [n, 0] where all vectors are equal."""
    from sklearn.decomposition import PCA

    sample = rows[np.sort(rng.permutation(len(rows))[:SAMPLE])]
    known = vectors_ND[sample]
    size = float(np.abs(known).max(initial=0.0)) or 1.0  # divided by it, squares neither overflow nor vanish
    known = (known / size).astype(np.float32)
    mean = known.mean(axis=0)
    known -= mean
    spread = float(np.sqrt(np.square(known).sum(axis=1).mean()))
    if not spread > 1e-6 * np.linalg.norm(mean) or not vectors_ND.shape[1]:
        return np.zeros((len(rows), 0), dtype=np.float32)
    width = min(COMPONENTS, len(sample), vectors_ND.shape[1])
    axes_CD = PCA(n_components=width, svd_solver="auto", random_state=0).fit(known).components_
    reduced = np.empty((len(rows), width), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = (vectors_ND[rows[start : start + _BLOCK]] / size).astype(np.float32)
        reduced[start : start + _BLOCK] = (part - mean) @ axes_CD.T / spread
    return reduced


def _tsne(known: Floats, seed: int) -> Floats:
    """t-SNE of the landmarks, in one thread: sums of several threads come in another order every time."""
    from sklearn.manifold import TSNE

    if not np.ptp(known, axis=0).any():  # the landmarks are equal, though not all vectors are
        return _disc(len(known))
    perplexity = min(PERPLEXITY, (len(known) - 1) / 3)
    known = np.pad(known, ((0, 0), (0, max(0, 2 - known.shape[1]))))
    with threadpool_limits(1):
        points = TSNE(init="pca", perplexity=perplexity, random_state=seed, method="barnes_hut").fit_transform(known)
    return np.asarray(points, dtype=np.float32)


def _among(reduced: Floats, chosen: NDArray[np.int64], laid: Floats, rng: np.random.Generator) -> Floats:
    """Landmarks where they are, every other point between the landmarks nearest to it, and a little beside."""
    points = np.empty((len(reduced), 2), dtype=np.float32)
    points[chosen] = laid
    others = np.setdiff1d(np.arange(len(reduced)), chosen, assume_unique=True)
    known = reduced[chosen]
    squares = np.square(known).sum(axis=1)
    around = min(AROUND, len(chosen))
    apart = _apart(laid)
    for start in range(0, len(others), _BLOCK // 4):
        part = others[start : start + _BLOCK // 4]
        far = np.square(reduced[part]).sum(axis=1)[:, None] + squares - 2 * reduced[part] @ known.T
        near = np.argpartition(far, around - 1, axis=1)[:, :around]
        far = np.maximum(np.take_along_axis(far, near, axis=1), 0)
        first, last = far.min(axis=1, keepdims=True), far.max(axis=1, keepdims=True)
        weights = np.exp(-4 * (far - first) / np.maximum(last - first, 1e-12))  # the last of them counts e⁻⁴
        weights /= weights.sum(axis=1, keepdims=True)
        points[part] = (weights[:, :, None] * laid[near]).sum(axis=1)
        points[part] += apart * rng.standard_normal((len(part), 2), dtype=np.float32)
    return points


def _apart(laid: Floats) -> float:
    """A third of the typical distance of a landmark to the next one: wide enough to tell points from one another."""
    from sklearn.neighbors import NearestNeighbors

    distances = NearestNeighbors(n_neighbors=2).fit(laid).kneighbors(laid)[0][:, 1]
    return float(np.median(distances)) / 3


def _plane(reduced: Floats) -> Floats:
    """The first two components; zero where there is one alone."""
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _disc(n: int) -> Floats:
    """n points evenly over a small disc, as seeds in a sunflower: there is nothing to tell them apart."""
    i = np.arange(n, dtype=np.float64)
    radius, angle = 0.1 * np.sqrt(i / max(n, 1)), i * np.pi * (3 - np.sqrt(5))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)


def _scaled(points: Floats) -> Floats:
    """Within -1 and 1, the middle of the range at 0."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2
    return np.asarray((points - (low + high) / 2) / (half if half > 0 else 1.0), dtype=np.float32)
