"""The stage of an audit that writes edited files: cleaned, flipped, removed, and the manifests that undo them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from seamark.audit.editing import denoise, relabel, write_edit, write_removed
from seamark.audit.scores import PairScores
from seamark.pipelines.audit_report_scores import SCORES
from seamark.pipelines.audit_report_stages import load_pairs
from seamark.run import write_json
from seamark.text.pairs import Message, Pairs, PreferencePair, Text

CLEAN, FLIPPED, REMOVED = "clean.jsonl", "flipped.jsonl", "removed.jsonl"
CLEAN_MANIFEST, FLIPPED_MANIFEST = "clean-manifest.json", "flipped-manifest.json"
EDITS = "edits.json"
NOTHING = f"no pair was removed: the share comes to less than half a pair, and {REMOVED} is empty"


def write_edits(folder: Path, data: Path, scores: Path, *, share: float, group: str, seed: int) -> None:
    """The pairs without the lowest-ranked share of the group, the same with these flipped, and these alone.

    Where the share comes to no pair, nothing is edited and the file of the removed is empty.
    Undoing gives back what was read as pairs: neither exact duplicates nor rejected rows, which `data` names.
    """
    pairs = in_one_shape(load_pairs(data, raw=True))
    ranking = PairScores.load(scores / SCORES)
    clean = denoise(pairs, ranking, share, group, seed, even=True)
    write_edit(clean, folder, CLEAN, CLEAN_MANIFEST)
    write_removed(clean, folder / REMOVED)
    flipped = relabel(pairs, ranking, share, group, seed, even=True)
    write_edit(flipped, folder, FLIPPED, FLIPPED_MANIFEST)
    about = clean.manifest
    write_json(folder / EDITS, {
        "share": share, "group": group, "group_size": about.group_size, "edited": about.n_edited,
        "kept": len(clean.pairs), "method": about.method, "wrapped": sum(
            about.layouts[mark.layout] is None for mark in about.rows),
    })  # fmt: skip


def in_one_shape(pairs: Pairs) -> Pairs:
    """The pairs as they are, or all as chats where some are: a file of both shapes does not load into TRL.

    Rows keep what was read, so that undoing an edit gives back the strings.
    """
    if len({isinstance(text, str) for p in pairs for text in (p.prompt, p.chosen, p.rejected)}) < 2:
        return pairs
    return replace(pairs, items=tuple(_as_chat(p) for p in pairs))


def _as_chat(pair: PreferencePair) -> PreferencePair:
    return replace(pair, prompt=_messages(pair.prompt, "user"), chosen=_messages(pair.chosen, "assistant"),
                   rejected=_messages(pair.rejected, "assistant"))  # fmt: skip


def _messages(text: Text, role: str) -> Text:
    return (Message(role, text),) if isinstance(text, str) else text
