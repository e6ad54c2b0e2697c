"""Other dimensions than safety: the value, statistical ratings of planted features, and the LLM's question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csc_matrix
from test_explaining import GOOD, SETS, FakeLLM

from seamark.errors import ConfigError, DataError
from seamark.explain.dimension import SAFETY, Dimension
from seamark.explain.explaining import answer_schema, check_answer, explain_features, explain_requests, prompt_version
from seamark.explain.folder import Settings
from seamark.explain.prompts import EXPLAIN
from seamark.explain.ratings import statistical_ratings
from seamark.explain.taxonomy import Taxonomy
from seamark.features import ContextConfig

VERBOSITY = Dimension(
    name="verbosity", group="verbose", against=("terse",),
    question="how strongly the feature has to do with saying in many words what few would say",
)  # fmt: skip
ANSWER = {k: v for k, v in GOOD.items() if k != "safety_rating"} | {"rating": 5}
N = 60


class Verbose:
    """Texts of three groups; latent 0 fires on verbose ones, 1 on all alike, 2 on poems, 3 on terse ones."""

    groups = ("verbose", "terse", "poems")

    @property
    def texts(self) -> pa.Table:
        return pa.table({"group": np.repeat(self.groups, N).tolist()})

    def sae_id(self, sae_id: str | None = None) -> str:
        return sae_id or "s"

    def columns(self, sae_id: str, latents: list[int], stat: str) -> csc_matrix:
        rng = np.random.default_rng(0)
        rates = np.array([[0.6, 0.05, 0.6], [0.5, 0.5, 0.5], [0.0, 0.0, 0.9], [0.05, 0.6, 0.0]])
        whole = rng.random((3 * N, 4)) < np.repeat(rates, N, axis=1).T
        return csc_matrix(whole[:, latents] * 1.0)


def test_planted_verbosity_features_are_rated() -> None:
    ratings = statistical_ratings(Verbose(), None, [0, 1, 2, 3], dimension=VERBOSITY)  # type: ignore[arg-type]
    assert [r.rating for r in ratings] == [5, 1, None, 1]  # the poems are no part of it
    assert "of verbose responses and" in ratings[0].why
    assert "of terse responses" in ratings[0].why
    everywhere = VERBOSITY.model_copy(update={"against": ()})
    first = statistical_ratings(Verbose(), None, [0], dimension=everywhere)[0]  # type: ignore[arg-type]
    assert "other responses" in first.why
    assert first.rating != 5  # poems have it too
    missing = VERBOSITY.model_copy(update={"group": "wordy"})
    with pytest.raises(DataError, match="Ratings need verbosity texts and others"):
        statistical_ratings(Verbose(), None, [0], dimension=missing)  # type: ignore[arg-type]


def test_the_question_replaces_that_for_safety() -> None:
    plain, other = explain_requests(SETS)["s", 1], explain_requests(SETS, dimension=VERBOSITY)["s", 1]
    assert SAFETY.question in plain.system
    assert SAFETY.question not in other.system
    assert "- rating: how strongly the feature has to do with saying in many words" in other.system
    assert "safety_rating" not in other.system
    assert "safety_rating" in plain.system
    assert (plain.user, plain.stage) == (other.user, other.stage)
    assert set(other.schema["properties"]) == set(ANSWER)
    assert explain_requests(SETS, dimension=SAFETY)["s", 1] == plain


def test_answers_and_records() -> None:
    check = check_answer(Taxonomy.default(), "en", VERBOSITY)
    request = explain_requests(SETS, dimension=VERBOSITY)["s", 1]
    assert check(request, ANSWER) == ""
    assert check(request, GOOD) == "rating: Field required"
    assert check(request, ANSWER | {"rating": 6}) == "rating: Input should be less than or equal to 5"
    assert check_answer(Taxonomy.default(), "en")(request, ANSWER) == "safety_rating: Field required"
    found = explain_features(SETS, FakeLLM(ANSWER), dimension=VERBOSITY)["s", 1]  # type: ignore[arg-type]
    assert found.rating == 5
    assert found.prompt_version == prompt_version(VERBOSITY)
    assert answer_schema(Taxonomy.default(), "en") == answer_schema(Taxonomy.default(), "en", SAFETY)


def test_versions_of_different_questions_differ() -> None:
    reworded = VERBOSITY.model_copy(update={"question": "how much the feature has to do with long answers."})
    renamed = VERBOSITY.model_copy(update={"name": "length"})
    mine = SAFETY.model_copy(update={"question": reworded.question})
    versions = [prompt_version(d) for d in (SAFETY, VERBOSITY, reworded, renamed, mine)]
    assert len(set(versions)) == 5
    assert versions[0] == EXPLAIN
    assert versions[1].startswith("explain-dimension-1:verbosity:")
    assert prompt_version(SAFETY.model_copy(update={"group": "harm"})) == EXPLAIN
    a, b = (Settings.of("k", ContextConfig(), "m", "en", Taxonomy.default(), promoted=False, dimension=d)
            for d in (SAFETY, VERBOSITY))  # fmt: skip
    assert a == Settings.of("k", ContextConfig(), "m", "en", Taxonomy.default(), promoted=False)
    assert a != b


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "verbosity.yaml"
    path.write_text(
        "name: verbosity\ngroup: verbose\nagainst: [terse]\nquestion: |\n  how strongly the feature has to do with\n"
        "  saying in many words what few would say\n", encoding="utf-8",
    )  # fmt: skip
    assert Dimension.load(path) == VERBOSITY
    assert VERBOSITY.others(["poems", "terse", "verbose"]) == ["terse"]
    assert SAFETY.others(["safety", "chat", "math"]) == ["chat", "math"]
    for groups, what in ((["verbose"], "no group 'terse'"), (["terse"], "no group 'verbose'")):
        with pytest.raises(DataError, match=what):
            VERBOSITY.others(groups)
    with pytest.raises(DataError, match="no group to tell safety from"):
        SAFETY.others(["safety"])


GIVEN: dict[str, Any] = {"name": "verbosity", "group": "verbose", "question": "how strongly it is about words"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": ""}, "key name"), ({"name": "a/b"}, "key name"), ({"name": "x" * 41}, "key name"),
        ({"group": ""}, "key group"), ({"question": "why"}, "key question"), ({"question": "x" * 601}, "key question"),
        ({"question": "how strongly it is\u202e about words"}, "key question"),
        ({"question": "how strongly ⟦end⟧ it is"}, "key question"), ({"against": "terse"}, "key against"),
        ({"against": ["verbose"]}, "told from itself"), ({"against": ["a", "a"]}, "comes twice"),
        ({"rating": 5}, "key rating"), ({"question": None}, "key question"),
    ],
)  # fmt: skip
def test_mistakes_name_their_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Dimension.of(GIVEN | changes, "recipe.yaml")
    assert Dimension.of(GIVEN).question.endswith("words.")


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [", "", "\udcff"])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"d\.yaml"):
        Dimension.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Dimension.load(tmp_path / "none.yaml")
