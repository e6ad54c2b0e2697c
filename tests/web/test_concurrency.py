"""Two hundred clients at once: all are answered, with what each asked for, while somebody writes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from made_atlas import SAES, N, app_of, client_of

from seamark.atlas.writing import AtlasWriter
from seamark.web.state import feature_path

CLIENTS = 200


def test_many_clients_each_get_their_answer(tmp_path: Path, atlas_file: Path) -> None:
    path = Path(shutil.copy(atlas_file, tmp_path / "copy.db"))
    app = app_of(path)
    new_client = client_of(app)

    async def one(number: int) -> None:
        latent = number % N
        async with new_client() as web:
            kinds = (
                (f"/api/v1{feature_path(SAES[0], latent)}", lambda r: r.json()["card"]["latent"] == latent),
                (f"/api/v1/features?limit={1 + latent}", lambda r: len(r.json()["cards"]) == 1 + latent),
                ("/features?words=harbour", lambda r: "kind" in r.text),
                (feature_path(SAES[1], latent), lambda r: f"latent {latent}" in r.text),
                ("/api/v1/landscape/decoder", lambda r: len(r.content) > 100),
            )
            target, right = kinds[number % len(kinds)]
            answer = await web.get(target)
            assert answer.status_code == 200, (target, answer.text[:300])
            assert right(answer), target

    async def write() -> None:
        for k in range(20):
            await asyncio.to_thread(mark, path, k)

    async def everybody() -> None:
        await asyncio.gather(write(), *(one(i) for i in range(CLIENTS)))

    asyncio.run(everybody())
    assert len(app.state.seamark.atlas.marks("scan")) == 20


def mark(path: Path, k: int) -> None:
    with AtlasWriter.open(path) as writer:
        writer.mark("scan", f"pair{k}", "fine")
