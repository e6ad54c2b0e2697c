"""What several diagnoses need before they begin: the unit of each feature, and a text short enough to be read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError
from seamark.features.reading import Scan
from seamark.sae import SparseAutoencoder
from seamark.text.pairs import Text, plain

MAX_CHARS = 200_000
"""Characters of prompt and answer together."""
NO_UNIT = "fires fewer than 10 times: no Q_f"


def units_of(
    sae_id: str, sae: SparseAutoencoder, q: Mapping[str, NDArray[np.float64]] | None
) -> NDArray[np.float64]:  # fmt: skip
    """Q_f [d_sae], NaN where there is none: a quantile of 0 is none either.

    Raises:
        ConfigError: Q_f of another number of features.
    """
    found = np.full(sae.config.d_sae, np.nan) if q is None or sae_id not in q else np.asarray(q[sae_id], np.float64)
    if found.shape != (sae.config.d_sae,):
        raise ConfigError(f"Q_f of {len(found)} features for an autoencoder of {sae.config.d_sae}", where=sae_id,
                          fix="Take the scan of the same autoencoder")  # fmt: skip
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def scan_units(scan: Scan, suite: Mapping[str, SparseAutoencoder]) -> dict[str, NDArray[np.float64]]:
    """{sae id: Q_f [d_sae]} of the autoencoders that a scan knows by name.

    Raises:
        ConfigError: the scan was made with another autoencoder of that name.
    """
    found = {}
    for sae_id, sae in suite.items():
        if sae_id in scan.sae_ids:
            if not made_with(scan, sae_id, sae):
                raise ConfigError(f"the scan was made with another autoencoder called {sae_id!r}", where=str(scan.path),
                                  fix="Take the autoencoder of the scan, or scan with this one")  # fmt: skip
            found[sae_id] = scan.q(sae_id)
    return found


def made_with(scan: Scan, sae_id: str, sae: SparseAutoencoder) -> bool:
    """Whether a scan knows this very autoencoder by that name."""
    return sae_id in scan.sae_ids and bool(scan.manifest["saes"][sae_id] == sae.fingerprint())


def other_model(scan: Scan, fingerprint: str) -> tuple[str, ...]:
    """A sentence where a scan was made with another model than the one of this fingerprint; no error, since a changed
    model is rightly held against the scan of the one it comes from."""
    if scan.manifest["model"] == fingerprint:
        return ()
    return ("The scan was made with another model than the one that is read: its Q_f, activation masses and features "
            "are those of that model.",)  # fmt: skip


def check_text(prompt: Text, answer: Text | None = None) -> None:
    """Raise `DataError` where a prompt is empty, or is too long together with its answer."""
    said = plain(prompt) if isinstance(prompt, str) else "".join(m.content for m in prompt)
    if not said.strip():
        raise DataError("the prompt is empty", fix="Give a text")
    size = len(said) + (0 if answer is None else len(plain(answer)))
    if size > MAX_CHARS:
        raise DataError(f"{size:,} characters; at most {MAX_CHARS:,} are read", fix="Give a shorter text")
