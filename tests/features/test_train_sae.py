from __future__ import annotations

import pytest
from feature_corpus import make_pairs, tiny
from token_texts import token_texts

from seamark.errors import ConfigError, DataError, ModelError
from seamark.features import SAETraining, StageConfig, train_sae
from seamark.features.training import split
from seamark.text.pairs import hash_unit
from seamark.text.rendering import Rendered

CONFIG = SAETraining(k=6, d_sae=128, held_out=0.2, batch_tokens=600)
STAGES = (
    StageConfig(name="general", positions="tokens", epochs=6, lr=3e-3, batch_size=128),
    StageConfig(name="safety", positions="clauses", scope="response", epochs=4, lr=1e-3, batch_size=64),
)


def texts(n: int = 30) -> list[Rendered]:
    renderer = tiny().renderer()
    return [t for p in make_pairs(n) for t in renderer.render_pair(p)]


def test_two_stages_learn_and_repeat() -> None:
    trained = train_sae(tiny(), texts(), CONFIG, STAGES)
    assert trained.sae.config.hookpoint == "layers.2"
    assert trained.sae.config.d_in == 32
    assert [s["name"] for s in trained.stages] == ["general", "safety"]
    assert trained.stages[0]["last_loss"] < 0.7 * trained.stages[0]["first_loss"]
    assert trained.stages[1]["first_loss"] < 0.7 * trained.stages[0]["first_loss"]
    assert trained.quality is not None
    assert trained.quality.fvu is not None
    assert 0 < trained.quality.fvu < 0.8
    assert trained.quality.l0 == 6
    again = train_sae(tiny(), {"general": texts(), "safety": texts()}, CONFIG, STAGES)
    assert again.sae.fingerprint() == trained.sae.fingerprint()


def test_training_through_a_small_buffer() -> None:
    trained = train_sae(tiny(), texts(), CONFIG.model_copy(update={"buffer_tokens": 300}), STAGES[:1])
    assert trained.stages[0]["last_loss"] < 0.7 * trained.stages[0]["first_loss"]


def test_both_sides_of_a_pair_are_held_out_together() -> None:
    train, held_out = split(token_texts(30), 0.2, 0)
    assert len(held_out)
    pairs = [{side.name(i).split(":")[0] for i in range(len(side))} for side in (train, held_out)]
    assert not pairs[0] & pairs[1]
    assert sum(map(len, pairs)) == 30
    _, held_out = split(token_texts(3), 1e-9, 0)
    assert len(held_out) == 2
    for share in (0.01, 0.2, 0.999):
        train, held_out = split(token_texts(1), share, 0)
        assert (len(train), len(held_out)) == (2, 0)
        assert len(split(token_texts(2), share, 0)[0]) == 2


def test_pairs_that_a_limit_keeps_are_not_those_that_are_held_out() -> None:
    """Both go by a hash of the id: by the same one, training on a sample of a large file would read nothing."""
    names = sorted((f"p{i}" for i in range(2000)), key=hash_unit)[:100]

    class Texts:
        def __len__(self) -> int:
            return len(names)

        def name(self, i: int) -> str:
            return f"{names[i]}:chosen"

        def subset(self, rows: list[int]) -> list[int]:
            return list(rows)

    train, held_out = split(Texts(), 0.05, 0)  # type: ignore[arg-type]
    assert len(held_out) < 15 < len(train)


def test_errors() -> None:
    with pytest.raises(DataError, match="stage safety: no texts"):
        train_sae(tiny(), {"general": texts(4)}, CONFIG, STAGES)
    with pytest.raises(ConfigError, match="no stage"):
        train_sae(tiny(), texts(4), CONFIG, ())
    with pytest.raises(ConfigError, match="more than d_sae"):
        train_sae(tiny(), texts(4), SAETraining(k=200, d_sae=100), STAGES)
    with pytest.raises(ModelError, match="layers"):
        train_sae(tiny(), texts(4), SAETraining(hookpoint="layers.99"), STAGES)
    empty = [tiny().renderer().render("Hi", "", "x:chosen"), tiny().renderer().render("Ho", "", "y:chosen")]
    with pytest.raises(DataError, match="no positions"):
        train_sae(tiny(), empty, CONFIG, STAGES[1:])
