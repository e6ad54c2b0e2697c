from __future__ import annotations

import pytest
import torch
from feature_corpus import make_pairs, tiny

from seamark.errors import ConfigError, DataError, ModelError
from seamark.features import SAETraining, StageConfig, train_sae
from seamark.features.activations import ActivationStream
from seamark.features.training import _split
from seamark.text.positions import positions
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


def stream(buffer_tokens: int, epochs: int = 2, seed: int = 0) -> ActivationStream:
    these = texts(8)
    chosen = [positions(t, "tokens") for t in these]
    return ActivationStream(
        tiny(), these, chosen, "layers.2", epochs=epochs, batch_tokens=300, buffer_tokens=buffer_tokens, seed=seed
    )


def test_small_buffer_gives_every_position_once_an_epoch_shuffled() -> None:
    cached, bounded = stream(1 << 18), stream(150)
    assert cached.fits
    assert not bounded.fits
    one, two = torch.cat(list(cached)), torch.cat(list(bounded))
    assert one.shape == two.shape == (bounded.total, 32)
    n = bounded.per_epoch
    for epoch in (slice(0, n), slice(n, 2 * n)):  # the same multiset of rows
        for column in (0, 7):
            torch.testing.assert_close(
                one[epoch, column].sort().values, two[epoch, column].sort().values, rtol=1e-4, atol=1e-4
            )
    for rows in (one, two):
        assert not torch.equal(rows[:n], rows[n:])
    assert torch.equal(two, torch.cat(list(stream(150))))
    assert not torch.equal(two, torch.cat(list(stream(150, seed=1))))
    assert max(len(c) for c in stream(150)) <= 150


def test_training_through_a_small_buffer() -> None:
    trained = train_sae(tiny(), texts(), CONFIG.model_copy(update={"buffer_tokens": 300}), STAGES[:1])
    assert trained.stages[0]["last_loss"] < 0.7 * trained.stages[0]["first_loss"]


def test_both_sides_of_a_pair_are_held_out_together() -> None:
    train, held_out = _split(texts(), CONFIG)
    assert held_out
    pairs = [{t.text_id.split(":")[0] for t in side} for side in (train, held_out)]
    assert not pairs[0] & pairs[1]
    train, held_out = _split(texts(3), SAETraining(held_out=1e-9))
    assert len(held_out) == 2
    train, held_out = _split(texts(1), CONFIG)
    assert train


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
