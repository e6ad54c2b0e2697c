"""A language model as the judge of labels: it sees a prompt and both answers, and says which one is better.

The judge does not know which answer is the chosen one. Answers are shown in an order that a hash of the pair's id and
their texts draws, so a pair whose label was swapped asks the same question, finds its answer in the cache, and gets the
same judgement with the other sign. Asked in both orders, a judge that prefers what stands first says nothing.

Texts are data of others: they stand on lines of their own, escaped, between two lines with a code that is a hash of all
that is between them (`explain.presenting`). What cannot be read is a failure with its reason, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from seamark.explain.llm import Answer, Request
from seamark.explain.presenting import escape, fence
from seamark.explain.prompts import JUDGE, load_prompt
from seamark.text.pairs import PreferencePair, Text, hash_unit, plain

if TYPE_CHECKING:
    from seamark.explain.llm import LLM, CostEstimate

STAGE = "judge"
SAFETY = (
    "safety. The better answer is less likely to help somebody do harm; where the request is harmless, it is the one "
    "that helps without needless refusal."
)
"""The criterion of the group `safety`."""
TEXT_CHARS = 8000
"""Characters of a prompt or an answer; the middle of a longer one is left out."""
ANSWER_TOKENS = 64
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "better": {"type": "string", "enum": ["A", "B", "equal"]},
        "confidence": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["better", "confidence"],
    "additionalProperties": False,
}
SAME = "both answers are the same"
ALIKE = "both answers look the same as far as they are shown"


class Judged(BaseModel):
    """What a language model thinks of labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    values: dict[str, float]
    """{pair id: −1 to 1}: confidence that the chosen answer is the better one; negative: that the rejected one is."""
    failed: dict[str, str]
    """{pair id: why there is no value}."""
    model: str
    prompt_version: str = JUDGE
    criterion: str
    both_orders: bool
    tokens_in: int = 0
    tokens_out: int = 0


class Asked(NamedTuple):
    """One question: a pair, its answers in one order."""

    pair: str
    chosen_first: bool
    request: Request

    def read(self, answer: Answer) -> float | str:
        """The judgement of the label, −1 to 1, or why there is none."""
        if answer.failed or answer.data is None:
            return answer.failed or "no answer"
        if problem := check(self.request, answer.data):
            return problem
        if answer.data["better"] == "equal":
            return 0.0
        sign = 1.0 if (answer.data["better"] == "A") == self.chosen_first else -1.0
        return sign * float(answer.data["confidence"]) / 100


def judge_pairs(
    llm: LLM, pairs: Sequence[PreferencePair], criterion: str = SAFETY, *, both_orders: bool = True
) -> Judged:
    """Ask a language model of every pair which of its answers is better.

    Args:
        llm: the language model, with its cache, ledger and budget.
        criterion: what better means, as a sentence that a person wrote: it stands among the instructions.
        both_orders: ask twice, each answer once in front, and take the mean; a pair with one failed answer has no
            value then. It costs twice as much.

    Raises:
        As `LLM.ask_all`.
    """
    asked = judge_questions(pairs, criterion, both_orders=both_orders)
    answers = llm.ask_all([a.request for a in asked], check, progress_title="Judge pairs")
    found: dict[str, list[float]] = {}
    failed = {p.id: why for p in pairs if (why := _untold(p))}
    for one, answer in zip(asked, answers, strict=True):
        value = one.read(answer)
        if isinstance(value, str):
            failed[one.pair] = value
        else:
            found.setdefault(one.pair, []).append(value)
    values = {pair: sum(some) / len(some) for pair, some in found.items() if pair not in failed}
    return Judged(
        values=values, failed=failed, model=llm.name, criterion=criterion, both_orders=both_orders,
        tokens_in=sum(a.tokens_in for a in answers), tokens_out=sum(a.tokens_out for a in answers),
    )  # fmt: skip


def judge_estimate(
    llm: LLM, pairs: Sequence[PreferencePair], criterion: str = SAFETY, *, both_orders: bool = True
) -> CostEstimate:
    """What `judge_pairs` is expected to take; asks nothing."""
    return llm.estimate([a.request for a in judge_questions(pairs, criterion, both_orders=both_orders)], check)


def judge_questions(pairs: Sequence[PreferencePair], criterion: str, *, both_orders: bool) -> list[Asked]:
    """The questions, pair by pair; none of a pair whose answers are the same, or would look it."""
    asked = []
    for pair in pairs:
        if _untold(pair):
            continue
        lots = [hash_unit(f"judge:{pair.id}:{plain(answer)}") for answer in (pair.chosen, pair.rejected)]
        first = lots[0] < lots[1]
        for chosen_first in (first, not first) if both_orders else (first,):
            asked.append(Asked(pair.id, chosen_first, _request(pair, criterion, chosen_first)))
    return asked


def check(request: Request, data: Mapping[str, Any]) -> str:
    """Why an answer cannot be used, empty where it can: what a client asks again for."""
    if data.get("better") not in ("A", "B", "equal"):
        return "better is none of A, B and equal"
    confidence = data.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 100:
        return "confidence is no number from 0 to 100"
    return ""


def _untold(pair: PreferencePair) -> str:
    """Why nobody could tell the answers apart; empty where they differ in what is shown."""
    if plain(pair.chosen) == plain(pair.rejected):
        return SAME
    return ALIKE if _line(pair.chosen) == _line(pair.rejected) else ""


def _request(pair: PreferencePair, criterion: str, chosen_first: bool) -> Request:
    answers = (pair.chosen, pair.rejected) if chosen_first else (pair.rejected, pair.chosen)
    lines = ["== prompt ==", _line(pair.prompt), "== answer A ==", _line(answers[0]), "== answer B ==",
             _line(answers[1])]  # fmt: skip
    data, code = fence(lines)
    system, user = load_prompt(JUDGE).fill({"criterion": " ".join(criterion.split()), "data": data, "code": code})
    return Request(STAGE, system, user, SCHEMA, "judgement", max_output_tokens=ANSWER_TOKENS)


def _line(text: Text) -> str:
    """A text on one line. It cannot be taken for a heading: it begins with a mark of its own."""
    whole = plain(text)
    half = TEXT_CHARS // 2
    return "| " + escape(whole if len(whole) <= TEXT_CHARS else f"{whole[:half]} … {whole[-half:]}")
