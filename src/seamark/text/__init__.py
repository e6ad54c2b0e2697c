"""Texts: reading and validating pairs and corpora, rendering them to tokens with spans, the demo data."""

from seamark.text.bow import bag_of_words_accuracy, longer_wins
from seamark.text.clauses import ClauseEnd, clause_ends, paper_clause_ends
from seamark.text.contrast import (
    ContrastPair,
    ContrastPairs,
    contrast_corpus,
    contrast_problem,
    read_contrast_pairs,
)
from seamark.text.corpus import Corpus, read_texts, stream_texts
from seamark.text.demo import demo_contrast_pairs, demo_pairs
from seamark.text.pairs import Message, Pairs, PreferencePair, RejectedRow, Text, content_id, hash_unit, plain
from seamark.text.positions import clause_positions, positions
from seamark.text.reading import ReadOptions, read_pairs, write_rejected
from seamark.text.rendering import Rendered, Renderer
from seamark.text.rows import text_of
from seamark.text.templates import DEFAULT_TEMPLATE, PINNED_DATE

__all__ = [
    "DEFAULT_TEMPLATE",
    "PINNED_DATE",
    "ClauseEnd",
    "ContrastPair",
    "ContrastPairs",
    "Corpus",
    "Message",
    "Pairs",
    "PreferencePair",
    "ReadOptions",
    "RejectedRow",
    "Rendered",
    "Renderer",
    "Text",
    "bag_of_words_accuracy",
    "clause_ends",
    "clause_positions",
    "content_id",
    "contrast_corpus",
    "contrast_problem",
    "demo_contrast_pairs",
    "demo_pairs",
    "hash_unit",
    "longer_wins",
    "paper_clause_ends",
    "plain",
    "positions",
    "read_contrast_pairs",
    "read_pairs",
    "read_texts",
    "stream_texts",
    "text_of",
    "write_rejected",
]
