"""Explaining features without a language model: a plain sentence from the words that raise the odds of firing.

The default offline, and labelled `lexical` in every record. A score of the lexical simulator tells how far a feature
follows words, not how well a language model would explain it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from seamark.errors import DataError
from seamark.explain.lexicon import ANY, Pattern, learn_lexicon, specificity, split_pattern
from seamark.explain.ratings import Rating
from seamark.explain.records import Explanation, LexiconEntry
from seamark.explain.segments import Span
from seamark.explain.taxonomy import Tag, Taxonomy, fold
from seamark.explain.words import Words
from seamark.explain.words import phrase as written
from seamark.features.context_sets import FeatureContexts
from seamark.show.html import visible

CAVEAT = (
    "Scores of the lexical simulator tell how far a feature follows words, not how well a language model would explain "
    "it."
)
"""Stands wherever such scores are shown."""
MIXED = (
    "{} of these explanations are lexical: their scores tell how far a feature follows words, whoever simulates them, "
    "not how well a language model would explain it."
)
"""Stands there where a language model simulates lexical explanations."""
TAG_SHARE = 0.25
"""Share of the lexicon's firings that entries with a tag's keywords must have."""
MAX_TAGS = 3
SAID = 8
"""Entries that the sentence names; the lexicon has them all."""
NO_RATING = "the lexical explainer gives no rating"
NO_LEXICON = "no word or phrase raises the odds of firing beyond chance"


def explain_lexical(contexts: FeatureContexts, taxonomy: Taxonomy, *, rating: Rating | None = None) -> Explanation:
    """Explain a feature by the words and phrases it fires on, from the explain half of its contexts alone.

    Tags: an entry speaks for a tag where one of the tag's keywords is a whole word or phrase of it; case, plural and
    spelling as in `taxonomy.fold`. A tag needs `TAG_SHARE` of the firings at the lexicon's entries; at most three are
    given, those with most firings first. No match, no tag.

    Args:
        contexts: of one feature.
        taxonomy: tags and their keywords.
        rating: a statistical safety rating of the same feature; without one the explanation is not rated.

    Returns:
        An explanation in English. Without Q_f, and where no word raises the odds of firing, it has no text but a
        reason. Equal contexts give equal explanations.

    Raises:
        DataError: the rating is of another feature.
    """
    key = {"sae": contexts.sae_id, "latent": contexts.latent, "language": "en", "method": "lexical", "cost": 0.0}
    if rating is not None and (rating.sae, rating.latent) != (contexts.sae_id, contexts.latent):
        raise DataError(f"the rating is of {rating.sae}/{rating.latent}", where=f"{contexts.sae_id}/{contexts.latent}",
                        fix="Give the feature's own rating")  # fmt: skip
    if contexts.q is None:
        return Explanation.model_validate(key | {"text": None, "reason": contexts.reason, "rating_reason": ""})
    lexicon = learn_lexicon(contexts.explain.contexts)
    if len(lexicon) < 2:
        reason = NO_LEXICON if lexicon else "there are no texts to explain from"
        return Explanation.model_validate(key | {"text": None, "reason": reason, "rating_reason": ""})
    return Explanation.model_validate(key | {
        "text": _sentence(lexicon), "lexicon": tuple(lexicon), "tags": tuple(_tags(lexicon, taxonomy)),
        "rating": rating.rating if rating else None, "rating_reason": rating.why if rating else NO_RATING,
    })  # fmt: skip


def caveat(explanations: Iterable[Explanation], *, by_llm: bool) -> str:
    """What must be said beside scores of these explanations; empty where a language model did both."""
    n = sum(e.method == "lexical" and not e.failed for e in explanations)
    return CAVEAT if not by_llm else MIXED.format(f"{n:,}") if n else ""


class LexicalSimulator:
    """Predicts where a feature fires from the lexicon of its explanation alone.

    A token's level is the weight of the most specific entry that matches it: of longer n-grams before shorter ones, of
    those that ask for a word elsewhere in the text before those that do not, of equals the first in the lexicon.
    A segment fires, and so does a text, where the level of one of its tokens reaches `threshold`: the weight that, as a
    cut between firing and silent tokens of the texts explained from, has the highest phi by the entries' own counts.

    Raises:
        DataError: the explanation has no lexicon.
    """

    def __init__(self, explanation: Explanation) -> None:
        if not explanation.lexicon:
            raise DataError("no lexicon to simulate from", where=f"{explanation.sae}/{explanation.latent}",
                            fix="Explain it without an LLM, or simulate it with one")  # fmt: skip
        self.threshold = _threshold(explanation.lexicon)
        self._entries = _Entries(explanation.lexicon)

    def levels(self, tokens: Sequence[str]) -> list[float]:
        """Expected level, 0-10, at each token [tokens]."""
        words = Words(tokens)
        found = self._entries.of_text(words)
        return [found.weight(words, t) for t in range(len(tokens))]

    def segments(self, levels: Sequence[float], spans: Sequence[Span]) -> list[int]:
        """1 for each segment that is predicted to fire, else 0, from the levels of the text's tokens."""
        return [int(self.fires(levels[start:end])) for start, end in spans]

    def fires(self, levels: Sequence[float]) -> bool:
        """Whether tokens of these levels are predicted to fire, one of them at least."""
        return max(levels, default=0.0) >= self.threshold


class _Entries:
    """A lexicon, or those of its entries that can match in a text, by the last word of their n-grams."""

    def __init__(self, lexicon: Sequence[LexiconEntry]) -> None:
        self._all = sorted(lexicon, key=lambda e: -specificity(e.ngram))
        self._by_last: dict[str, list[tuple[Pattern, float]]] = {}
        self._any = 0.0

    def of_text(self, words: Words) -> _Entries:
        found, held = _Entries(()), set(words.words)
        for entry in reversed(self._all):
            word, ngram = split_pattern(entry.ngram)
            if word is not None and word not in held:
                continue
            if ngram:
                found._by_last.setdefault(ngram[-1], []).insert(0, (ngram[:-1], entry.weight))
            else:
                found._any = entry.weight  # the last to be set is the most specific
        return found

    def weight(self, words: Words, token: int) -> float:
        """Level at a token."""
        for before, weight in self._by_last.get(words.names[token], ()):
            if words.before(token, len(before)) == before:
                return weight
        return self._any


def _threshold(lexicon: Sequence[LexiconEntry]) -> float:
    """The cut with the highest phi; of equals the highest."""
    all_fires, all_seen = sum(e.fires for e in lexicon), sum(e.seen for e in lexicon)
    best, cut = -math.inf, math.inf
    for weight in sorted({e.weight for e in lexicon}, reverse=True):
        hits = sum(e.fires for e in lexicon if e.weight >= weight)
        called = sum(e.seen for e in lexicon if e.weight >= weight)
        spread = called * (all_seen - called) * all_fires * (all_seen - all_fires)
        phi = (hits * all_seen - called * all_fires) / math.sqrt(spread) if spread else 0.0
        if phi > best:
            best, cut = phi, weight
    return cut


def _sentence(lexicon: Sequence[LexiconEntry]) -> str:
    """What the lexicon says, in words: what it fires on, what it fires on now and then, and in which texts."""
    cut = _threshold(lexicon)
    entries = [e for e in lexicon if e.ngram != ANY]
    often = _places([e for e in entries if e.weight >= cut][:SAID])
    seldom = _places([e for e in entries if e.weight < cut][: SAID - min(SAID, len(often))])
    said = [f"Fires {_listed(often)}"] if often else []
    if seldom:
        said.append(("now and then " if said else "Now and then fires ") + _listed(seldom))
    return "; ".join(said) + "."


def _places(entries: Sequence[LexiconEntry]) -> list[str]:
    """`on "vote"`, `on "vote" in texts with "government" or "senate"`, `anywhere in texts with "senate"`."""
    within: dict[Pattern, list[str]] = {}
    for entry in entries:
        word, ngram = split_pattern(entry.ngram)
        within.setdefault(ngram, []).extend([] if word is None else [_quoted((word,))])
    plain = [f"on {_quoted(ngram)}" for ngram, words in within.items() if not words]
    bound = [
        (f"on {_quoted(ngram)}" if ngram else "anywhere") + f" in texts with {_either(words)}"
        for ngram, words in within.items() if words
    ]  # fmt: skip
    return [*plain, *bound]


def _listed(places: Sequence[str]) -> str:
    """`on "a", "b" and "c"`."""
    short = [p.removeprefix("on ") if i and p.startswith("on ") else p for i, p in enumerate(places)]
    return short[0] if len(short) == 1 else f"{', '.join(short[:-1])} and {short[-1]}"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _quoted(ngram: Pattern) -> str:
    return f'"{visible(written(ngram))}"'


def _tags(lexicon: Sequence[LexiconEntry], taxonomy: Taxonomy) -> list[Tag]:
    entries = [e for e in lexicon if e.ngram != ANY]
    fires: dict[Tag, int] = {}
    for entry in entries:
        for tag in _spoken_for(entry.ngram, taxonomy.keywords):
            fires[tag] = fires.get(tag, 0) + entry.fires
    least = TAG_SHARE * sum(e.fires for e in entries)
    kept = [tag for tag, n in sorted(fires.items(), key=lambda item: -item[1]) if n >= least]
    return taxonomy.check(kept)[:MAX_TAGS]


def _spoken_for(pattern: Pattern, keywords: Mapping[str, Sequence[Tag]]) -> list[Tag]:
    """Tags with a keyword that is a whole word or phrase of the pattern."""
    word, ngram = split_pattern(pattern)
    parts = [part for part in ((word,) if word else (), ngram) if part]
    phrases = {part[i:j] for part in parts for i in range(len(part)) for j in range(i + 1, len(part) + 1)}
    found = (tag for phrase in sorted(phrases) for tag in keywords.get(fold(written(phrase)), ()))
    return list(dict.fromkeys(found))
