"""Are pairs still those that were scanned? Ids stay when a label is turned round, so a match of ids says too little."""

from __future__ import annotations

from seamark.errors import DataError
from seamark.features.arrays import read_table
from seamark.features.reading import Scan
from seamark.text.pairs import Pairs
from seamark.text.rows import text_of

_alike: set[tuple[str, str]] = set()
"""(key of a scan, fingerprint of pairs) that were found to agree in this process."""


def check_same_labels(scan: Scan, pairs: Pairs) -> None:
    """Raise `DataError` where a pair's answers were scanned the other way round than its label has them now.

    Latents and margins would speak for the old label and words for the new one. Only what is certain counts: the text
    scanned as chosen holds the rejected answer and not the chosen one, and the other text the reverse. Templates may
    trim white space. Texts are read a part at a time.
    """
    known, fingerprint = scan.manifest.get("texts"), pairs.fingerprint()
    key = str(scan.manifest["key"]), fingerprint
    if known in (None, fingerprint) or key in _alike:
        return
    answers = {f"{p.id}:{side}": (p.id, side) for p in pairs for side in ("chosen", "rejected")}
    by_id = {p.id: p for p in pairs}
    turned: dict[str, int] = {}
    for part in scan.parts:
        table = read_table(part / "rendered.parquet", ["text_id", "text"])
        for text_id, text in zip(table["text_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            pair_id, side = answers.get(text_id, ("", ""))
            if pair_id:
                pair = by_id[pair_id]
                mine, other = (pair.chosen, pair.rejected) if side == "chosen" else (pair.rejected, pair.chosen)
                shown = _spaced(text)
                if _spaced(text_of(other)) in shown and _spaced(text_of(mine)) not in shown:
                    turned[pair_id] = turned.get(pair_id, 0) + 1
    wrong = [p.id for p in pairs if turned.get(p.id) == 2]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(pairs)} pairs have the other label than when they were scanned, the first being "
            f"{wrong[0]!r}", where=str(scan.path), fix="Scan the pairs as they are now",
        )  # fmt: skip
    _alike.add(key)


def _spaced(text: str) -> str:
    return " ".join(text.split())
