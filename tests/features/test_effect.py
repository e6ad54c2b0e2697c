from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny

from seamark.errors import ConfigError, DataError
from seamark.features import direct_effect, scan
from seamark.text.rendering import Rendered


def texts(kind: str) -> list[Rendered]:
    return [tiny(kind).renderer().render_pair(p)[0] for p in make_pairs(6)]


def by_hand(kind: str, text: Rendered, latent: int, size: float) -> float:
    """The reward of one text with the latent raised, by a plain hook."""
    model, sae = tiny(kind), make_sae()

    def hook(_m, _a, out):
        h = (out[0] if isinstance(out, tuple) else out).clone()
        a, b = text.response_span
        h[0, a:b] += size * sae.W_dec[latent] * (h[0, a:b].std(-1, keepdim=True) + 1e-6)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    blocks = model.hf.model.layers if kind == "llama" else model.hf.bert.encoder.layer
    handle = blocks[2].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return float(model.hf(input_ids=torch.from_numpy(text.input_ids.astype(np.int64))[None]).logits[0, 0])
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_equals_a_plain_hook(kind: str) -> None:
    q = np.full(96, 2.0)
    q[5] = np.nan
    effects = direct_effect(tiny(kind), make_sae(), [0, 5, 11], texts(kind), q=q, batch_tokens=100)
    assert not effects[5].available
    assert "10" in effects[5].reason
    for latent in (0, 11):
        change = [by_hand(kind, t, latent, 2.0) - by_hand(kind, t, latent, 0.0) for t in texts(kind)]
        estimate = effects[latent]
        assert estimate.value == pytest.approx(np.mean(change), rel=1e-3, abs=1e-4)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n == 6


def test_nothing_raised_changes_nothing_and_q_comes_from_a_scan(tmp_path: Path) -> None:
    sae = make_sae()
    result = scan(tiny(), {"s": sae}, make_pairs(), tmp_path)
    q = result.q("s")
    latent = int(np.flatnonzero(np.isfinite(q))[0])
    nothing = direct_effect(tiny(), sae, [latent], texts("llama"), q=q, amount=0.0)
    assert nothing[latent].value == pytest.approx(0.0, abs=1e-6)
    missing = direct_effect(tiny(), sae, [latent], texts("llama"), q={})
    assert missing[latent].value is None


def test_errors() -> None:
    with pytest.raises(DataError, match="no latent 96"):
        direct_effect(tiny(), make_sae(), [96], texts("llama"), q={})
    with pytest.raises(DataError, match="no text with a response"):
        direct_effect(tiny(), make_sae(), [1], [], q={})
    with pytest.raises(ConfigError, match="clusters"):
        direct_effect(tiny(), make_sae(), [1], texts("llama"), q={}, clusters=["a"])
