"""Explaining features: what each stands for, its tags and its rating, by a language model or without one.

With an LLM as in Safe-SAIL (arXiv 2509.18127, METHODS §2.3), rated on SAFER's scale (arXiv 2507.00665, METHODS §1.5),
for safety or another dimension.
Without one the lexical explainer is used, and its records say so. What fails is recorded with its reason and is never
rated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seamark.errors import ConfigError, DataError
from seamark.explain.dimension import SAFETY, Dimension
from seamark.explain.lexical import explain_lexical
from seamark.explain.llm import Answer, Check, Request
from seamark.explain.presenting import MAX_CHARS, Presented, escape, present
from seamark.explain.prompts import EXPLAIN, EXPLAIN_DIMENSION, load_prompt
from seamark.explain.records import Explanation, Key
from seamark.explain.taxonomy import Taxonomy
from seamark.features.context_sets import FeatureContexts
from seamark.features.promoted import Promoted
from seamark.features.reading import Scan
from seamark.run import digest
from seamark.show.html import visible
from seamark.text.pairs import hash_unit

if TYPE_CHECKING:
    from seamark.explain.llm import LLM

STAGE = "explain"
MAX_TEXT = 600
"""Characters of an explanation; a longer one does not follow the prompt."""
MAX_REASON = 400
MAX_OUTPUT_TOKENS = 1024
"""Of an answer; what a model thinks before is for `LLMConfig.reasoning_tokens`."""
ECHO = 80
"""Characters in a row that an explanation may not share with its prompt."""
NO_CONTEXTS = "the feature is active in none of the texts to explain from"

LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "pt": "Portuguese", "ru": "Russian", "zh": "Simplified Chinese",
}  # fmt: skip
"""Languages by code; any other code is given to the LLM as it is."""
_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")
_SCRIPTS = {
    "ar": "[\u0600-\u06ff]", "hi": "[\u0900-\u097f]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]",
    "ru": "[\u0400-\u04ff]", "zh": "[\u4e00-\u9fff]",
}  # fmt: skip


class _Answered(BaseModel):
    """An answer of the form asked for; what else it holds is ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    explanation: str
    tags: list[str]
    rating: int | None = Field(ge=1, le=5)
    rating_reason: str
    language: str

    @classmethod
    def read(cls, data: Mapping[str, Any], dimension: Dimension) -> _Answered:
        """The answer, whose rating may have a name of its own. `ValidationError` where it has another form."""
        key = _rating_key(dimension)
        return cls.model_validate({k: v for k, v in data.items() if k != "rating"} | (
            {"rating": data[key]} if key in data else {}))  # fmt: skip


def draw_features(scan: Scan, sae_id: str | None = None, n: int = 200, seed: int = 0) -> dict[str, list[int]]:
    """{sae id: `n` latents} of those that have a Q_f, ascending: drawn by a hash of their number, so that more of them
    hold the fewer, and none depends on what the others are.

    Raises:
        ConfigError: no such autoencoder, or none is named and there are several; n is below 1.
        DataError: no latent has a Q_f.
    """
    if n < 1:
        raise ConfigError(f"{n} features", where="n", fix="Ask for at least one")
    sae_id = scan.sae_id(sae_id)
    with_q = np.flatnonzero(~np.isnan(scan.q(sae_id))).tolist()
    if not with_q:
        raise DataError("no feature fires often enough to have a Q_f", where=f"{scan.path}, {sae_id}",
                        fix="Scan more texts, or name latents")  # fmt: skip
    return {sae_id: sorted(sorted(with_q, key=lambda latent: hash_unit(f"{sae_id}/{latent}", seed))[:n])}


def explain_features(
    contexts: Mapping[Key, FeatureContexts],
    llm: LLM | None = None,
    *,
    taxonomy: Taxonomy | None = None,
    language: str = "en",
    promoted: Mapping[Key, Promoted] | None = None,
    max_chars: int = MAX_CHARS,
    dimension: Dimension = SAFETY,
) -> dict[Key, Explanation]:
    """Explain features from the explain half of their contexts; the other half is never looked at.

    Args:
        contexts: as `context_sets` gives them.
        llm: the language model to ask; None: the lexical explainer, whose text is English whatever `language` says.
        taxonomy: tags to choose from; None: `Taxonomy.default()`.
        language: code of the language to explain in, such as "en" or "zh".
        promoted: tokens that features promote and suppress, if known (`promoted_tokens`).
        max_chars: characters of one feature's texts in its prompt.
        dimension: what the LLM rates features for.

    Returns:
        {(sae id, latent): explanation}, in the order of `contexts`. Every feature is there: one that is active in none
        of its texts, and one that no usable answer came for, with the reason and without text, tags or rating.

    Raises:
        ConfigError: no language code, or `max_chars` too small.
        BudgetError: the budget is spent, and the client was told to raise then.
    """
    taxonomy, promoted = taxonomy or Taxonomy.default(), promoted or {}
    if not _CODE.fullmatch(language):
        raise ConfigError(f"{language!r} is no language code", where="language", fix="Write en, zh, de, …")
    if llm is None:
        found = {key: _lexically(feature, taxonomy) for key, feature in contexts.items()}
    else:
        found = _by_llm(contexts, llm, taxonomy, language, promoted, max_chars, dimension)
    return {key: _with_promoted(found[key], promoted.get(key)) for key in contexts}


def explain_requests(
    contexts: Mapping[Key, FeatureContexts],
    *,
    taxonomy: Taxonomy | None = None,
    language: str = "en",
    promoted: Mapping[Key, Promoted] | None = None,
    max_chars: int = MAX_CHARS,
    dimension: Dimension = SAFETY,
) -> dict[Key, Request]:
    """What `explain` asks an LLM, for every feature that is active in its texts; for estimates of the cost."""
    taxonomy, promoted = taxonomy or Taxonomy.default(), promoted or {}
    requests = {}
    for key, feature in contexts.items():
        if _is_active(feature):
            shown = present(feature, max_chars=max_chars, promoted=promoted.get(key))
            requests[key] = _request(shown, taxonomy, language, dimension)
    return requests


def prompt_version(dimension: Dimension = SAFETY) -> str:
    """The prompt's name as records have it. With another question than safety's it holds the dimension's name and a
    digest of the question: ratings for different questions never pass for one."""
    if _is_safety(dimension):
        return EXPLAIN
    return f"{EXPLAIN_DIMENSION}:{dimension.name}:{digest(dimension.question)[:8]}"


def _is_safety(dimension: Dimension) -> bool:
    return (dimension.name, dimension.question) == (SAFETY.name, SAFETY.question)


def _rating_key(dimension: Dimension) -> str:
    return "safety_rating" if _is_safety(dimension) else "rating"


def answer_schema(taxonomy: Taxonomy, language: str, dimension: Dimension = SAFETY) -> dict[str, Any]:
    """JSON schema of an answer: tags from the taxonomy alone, rating 1-5 or null. All keys are required."""
    properties = {
        "explanation": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string", "enum": [str(tag) for tag in taxonomy.tags]}},
        _rating_key(dimension): {"type": ["integer", "null"], "enum": [1, 2, 3, 4, 5, None]},
        "rating_reason": {"type": "string"},
        "language": {"type": "string", "enum": [language]},
    }
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def llm_ratings(explanations: Iterable[Explanation]) -> dict[Key, tuple[int | None, str]]:
    """Ratings as `FeatureSet.with_ratings` takes them. A failed explanation is never rated (SAFER's own code lets it
    pass as a 5, METHODS §1.5)."""
    return {
        e.key: (None, f"not rated: {e.reason}") if e.text is None else (e.rating, e.rating_reason) for e in explanations
    }


def check_answer(taxonomy: Taxonomy, language: str, dimension: Dimension = SAFETY) -> Check:
    """A function that says why an answer cannot be used; empty where it can."""

    def check(request: Request, data: Mapping[str, Any]) -> str:
        try:
            answer = _Answered.read(data, dimension)
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            return f"{_rating_key(dimension) if key == 'rating' else key}: {first['msg']}"
        if problem := _text_problem(" ".join(answer.explanation.split()), request, language):
            return problem
        if answer.rating is not None and not answer.rating_reason.strip():
            return "rating_reason is empty"
        if unknown := taxonomy.sort_out(answer.tags).unknown:
            return f"unknown tags: {', '.join(repr(_clean(tag)[:40]) for tag in unknown[:3])}"
        return ""

    return check


def _text_problem(text: str, request: Request, language: str) -> str:
    if not re.search(r"\w", text):
        return "explanation is empty"
    if len(text) > MAX_TEXT:
        return f"explanation is longer than {MAX_TEXT} characters"
    if "⟦" in text or "⟧" in text:
        return "explanation repeats marks of the prompt"
    for part in (request.user, request.system):
        if _shares(_plain(escape(text)), _plain(part)):
            return "explanation repeats the prompt or one of its texts"
    script = _SCRIPTS.get(language.split("-")[0])
    if script and not re.search(script, text):
        return f"explanation is not in the language asked for ({language})"
    return ""


def _plain(prompt: str) -> str:
    """Without marks and line breaks, so that a text of the prompt is found whatever is marked in it."""
    unmarked = re.sub(r"«([^»]*)\|\d+»", r"\1", prompt)
    return " ".join(unmarked.replace("⏎", " ").replace("⇥", " ").split())


def _shares(text: str, prompt: str) -> bool:
    """Whether the text is part of the prompt, or so are `ECHO` characters in a row of it."""
    if len(text) <= ECHO:
        return len(text) >= ECHO // 2 and text in prompt
    return any(text[i : i + ECHO] in prompt for i in range(len(text) - ECHO + 1))


def _request(shown: Presented, taxonomy: Taxonomy, language: str, dimension: Dimension) -> Request:
    asked = {} if _is_safety(dimension) else {"question": dimension.question, "dimension": dimension.name}
    system, user = load_prompt(EXPLAIN_DIMENSION if asked else EXPLAIN).fill({
        **asked,
        "language": LANGUAGES.get(language, f"the language of code {language}"),
        "language_code": language,
        "tags": _tag_list(taxonomy),
        "notes": " ".join(shown.notes),
        "data": shown.text,
        "code": shown.code,
    })  # fmt: skip
    schema = answer_schema(taxonomy, language, dimension)
    return Request(STAGE, system, user, schema, "explanation", max_output_tokens=MAX_OUTPUT_TOKENS)


def _tag_list(taxonomy: Taxonomy) -> str:
    """A line per tag; a user's own descriptions cannot break out of it."""
    lines = []
    for tag in taxonomy.tags:
        description = escape(" ".join(taxonomy.concept(tag).description.split()))
        lines.append(f"- {escape(str(tag))}: {description}" if description else f"- {escape(str(tag))}")
    return "\n".join(lines)


def _is_active(feature: FeatureContexts) -> bool:
    return any(context.max_activation > 0 for context in feature.explain.contexts)


def _by_llm(
    contexts: Mapping[Key, FeatureContexts], llm: LLM, taxonomy: Taxonomy, language: str,
    promoted: Mapping[Key, Promoted], max_chars: int, dimension: Dimension,
) -> dict[Key, Explanation]:  # fmt: skip
    requests = explain_requests(contexts, taxonomy=taxonomy, language=language, promoted=promoted, max_chars=max_chars,
                                dimension=dimension)  # fmt: skip
    check = check_answer(taxonomy, language, dimension)
    answers = llm.ask_all(list(requests.values()), check, progress_title="Explain")
    about = {"language": language, "method": "llm", "model": llm.name, "prompt_version": prompt_version(dimension)}
    found = {
        key: _record(key, answer, taxonomy, about, dimension) for key, answer in zip(requests, answers, strict=True)
    }
    for key in contexts:
        if key not in found:
            found[key] = Explanation(sae=key[0], latent=key[1], text=None, reason=NO_CONTEXTS, rating_reason="",
                                     cost=0.0, **about)  # fmt: skip
    return found


def _record(
    key: Key, answer: Answer, taxonomy: Taxonomy, about: Mapping[str, Any], dimension: Dimension
) -> Explanation:
    spent = {"tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out, "cost": answer.cost}
    common = {"sae": key[0], "latent": key[1], **about, **spent}
    if answer.failed or answer.data is None:
        reason = visible(answer.failed) or "no answer came"
        return Explanation(text=None, reason=reason, rating_reason="", **common)
    good = _Answered.read(answer.data, dimension)
    reason = _clean(good.rating_reason)[:MAX_REASON] or "the LLM gave neither a rating nor a reason"
    return Explanation(
        text=_clean(good.explanation), tags=tuple(taxonomy.check(good.tags)), rating=good.rating,
        rating_reason=reason, **common,
    )  # fmt: skip


def _clean(text: str) -> str:
    """On one line, with characters that act unseen made visible."""
    return visible(" ".join(text.split()))


def _lexically(feature: FeatureContexts, taxonomy: Taxonomy) -> Explanation:
    if not _is_active(feature):
        return Explanation(sae=feature.sae_id, latent=feature.latent, text=None, reason=NO_CONTEXTS, rating_reason="",
                           language="en", method="lexical", cost=0.0)  # fmt: skip
    return explain_lexical(feature, taxonomy)


def _with_promoted(explanation: Explanation, promoted: Promoted | None) -> Explanation:
    if promoted is None:
        return explanation
    sides = {
        "promoted": tuple(token for token, _ in promoted.promoted),
        "suppressed": tuple(token for token, _ in promoted.suppressed),
    }
    return explanation.model_copy(update=sides)
