"""One part of a scan: read by the model, written by a thread beside it, on disk whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from seamark.features.accumulate import SCORING, Accumulator, Firings, StoredPositions
from seamark.features.arrays import save_arrays
from seamark.features.config import ScanConfig
from seamark.features.gather import Gathered, gather_by
from seamark.features.reading import RAW
from seamark.features.scan_texts import PartTexts, ScanTexts
from seamark.features.token_latents import TokenWriter
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.model.reading import Reader
from seamark.run import give_back_memory, write_atomic
from seamark.sae import SparseAutoencoder, SparseLatents
from seamark.text.rendering import Renderer

AHEAD = 2
"""Batches that wait for the writer, at most."""
Suite = Mapping[str, SparseAutoencoder]
Means = dict[str, NDArray[np.float32]]


class Found(NamedTuple):
    """What a batch gave: latents of every autoencoder at its positions; rewards and mean activations if asked for."""

    latents: dict[str, SparseLatents]
    rewards: NDArray[np.float64] | None
    raw: Means | None


TEXTS = pa.schema([
    ("text_id", pa.string()), ("pair_id", pa.string()), ("side", pa.string()), ("group", pa.string()),
    ("prompt", pa.string()), ("content", pa.string()), ("n_positions", pa.int64()), ("n_tokens", pa.int64()),
    ("n_response", pa.int64()), ("truncated", pa.int64()), ("reward", pa.float64()),
])  # fmt: skip


RENDERED = pa.schema([
    ("text_id", pa.string()), ("text", pa.string()), ("input_ids", pa.list_(pa.int32())),
    ("start", pa.list_(pa.int32())), ("end", pa.list_(pa.int32())), ("special", pa.list_(pa.bool_())),
    ("prompt_span", pa.list_(pa.int64())), ("response_span", pa.list_(pa.int64())),
])  # fmt: skip


def part_name(part: int) -> str:
    return f"{part:05d}"


def sae_folder(folder: Path, sae_id: str) -> Path:
    """Where a scan, or a part of it, keeps one autoencoder's results; ids may hold any character."""
    return folder / "saes" / quote(sae_id, safe="")


class PartReader:
    """Reads parts of a corpus. While batches run, one thread tokenises the next part and one writes what is there.

    Args:
        model: the model.
        suite: {sae id: autoencoder}.
        corpus: what to read.
        config: how.
        batch_tokens: padded tokens in a batch.
        keep_tokens: whether latents of single tokens are written.
        at_once: batches that run side by side, each in a thread of its own.
        threads: torch's threads for each of them.
    """

    def __init__(
        self, model: HookedModel, suite: Suite, corpus: ScanTexts, config: ScanConfig, *, batch_tokens: int,
        keep_tokens: bool, at_once: int = 1, threads: int = 1,
    ) -> None:  # fmt: skip
        self.model, self.suite, self.corpus, self.config, self.keep_tokens = model, suite, corpus, config, keep_tokens
        self.batch_tokens, self.at_once, self.threads = batch_tokens, at_once, threads
        self.renderer: Renderer = model.renderer(config.max_length)
        self.hookpoints = sorted({sae.config.hookpoint for sae in suite.values()})
        for sae in suite.values():
            sae.to(model.device)

    def read(self, parts: list[int], folder: Path, advance: Callable[[int], None]) -> None:
        """Write each of `parts` as a folder of `folder`; one that is there already is left as it is.

        Raises:
            DataError: NaN or infinite activations or rewards.
        """
        missing = [p for p in parts if not (folder / part_name(p)).exists()]
        for p in set(parts) - set(missing):
            advance(len(self.corpus.parts[p]))
        reader = Reader(self.model, self.hookpoints, with_output=self.config.rewards, precision=self.config.precision)
        with reader, ThreadPoolExecutor(1, "render") as renderer, _Writing() as writing:
            work = partial(self._read_batch, reader)
            ready = partial(_ready, self.model.device, self.threads)
            batches = in_order(work, self._batches(missing, folder, renderer), self.at_once, ready)
            with contextlib.closing(batches):
                for part, rows, got in batches:
                    if got is not None:
                        writing.do(part.add, rows, *got)
                    else:
                        writing.do(part.close)
                        writing.do(partial(give_back_memory, collect=False))
                        advance(len(self.corpus.parts[part.number]))

    def _batches(
        self, missing: list[int], folder: Path, renderer: ThreadPoolExecutor
    ) -> Iterator[tuple[PartWriter, list[int]]]:
        """The batches of all parts, one behind the other; no rows: the part is at its end."""
        coming = deque(renderer.submit(self._render, p) for p in missing[:1])
        for i, number in enumerate(missing):
            texts = coming.popleft().result()
            if i + 1 < len(missing):
                coming.append(renderer.submit(self._render, missing[i + 1]))
            part = PartWriter(folder, number, texts, self)
            yield from ((part, rows) for rows in batches_of(texts, self.batch_tokens))
            yield part, []

    def _render(self, part: int) -> PartTexts:
        return self.corpus.render(part, self.renderer, self.config)

    def _read_batch(self, reader: Reader, part: PartWriter, rows: list[int]) -> Found | None:
        if not rows:
            return None
        texts = part.texts
        got = gather_by(reader, texts.texts, rows, [texts.positions[r] for r in rows])
        found = {i: sae.encode(got.activations[sae.config.hookpoint].to(sae.b_enc.device))
                 for i, sae in self.suite.items()}  # fmt: skip
        raw = _means(got, [(texts.flags[r] & SCORING) != 0 for r in rows]) if self.config.raw else None
        return Found(found, got.rewards, raw)


def _means(got: Gathered, scored: list[NDArray[np.bool_]]) -> Means:
    """{hookpoint: mean over the scoring positions of each text [texts, d_in]}; NaN where a text has none."""
    ends = np.cumsum([len(s) for s in scored]).tolist()
    at = [torch.from_numpy(np.flatnonzero(s) + end - len(s)) for s, end in zip(scored, ends, strict=True)]
    return {
        hookpoint: torch.stack([h_ND[i.to(h_ND.device)].mean(0, dtype=torch.float64) for i in at]).float().cpu().numpy()
        for hookpoint, h_ND in got.activations.items()
    }


def in_order(
    work: Callable[[PartWriter, list[int]], Found | None], batches: Iterable[tuple[PartWriter, list[int]]],
    at_once: int, ready: Callable[[], None],
) -> Generator[tuple[PartWriter, list[int], Found | None]]:  # fmt: skip
    """Each batch with what `work` makes of it, in their order; `at_once` of them are worked on side by side, in threads
    that begin with `ready`. An error among `batches` comes out behind the batches before it.

    A batch for each thread beats all threads on one batch: they need not wait for one another at every product, nor
    for the core on which texts are tokenised or written just then.
    """
    pool = ThreadPoolExecutor(at_once, "read", initializer=ready)
    coming: deque[tuple[PartWriter, list[int], Future[Found | None]]] = deque()
    source, problem, more = iter(batches), None, True
    try:
        while more or coming:
            while more and len(coming) <= at_once:
                try:
                    part, rows = next(source)
                    coming.append((part, rows, pool.submit(work, part, rows)))
                except StopIteration:
                    more = False
                except Exception as e:
                    problem, more = e, False
            if coming:
                part, rows, first = coming.popleft()
                yield part, rows, first.result()
        if problem is not None:
            raise problem
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(device: torch.device, threads: int) -> None:
    """A thread computes as the caller would: torch's threads and the current GPU belong to each."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def batches_of(texts: PartTexts, batch_tokens: int) -> list[list[int]]:
    """Rows of a part that run together, the batch of most padded tokens first: later ones fit into memory that is there
    already. In the order of lengths each would need a little more than the one before has left."""
    lengths = [len(t) for t in texts.texts]
    plan = plan_batches(lengths, batch_tokens)
    return sorted(plan, key=lambda rows: -len(rows) * lengths[rows[0]])


class _Writing:
    """A thread that does what it is given, in order, a few tasks behind; its errors come out at the next task.

    After an error nothing more is done: a part that lacks a batch must not be finished.
    """

    def __init__(self) -> None:
        self._thread, self._pending = ThreadPoolExecutor(1, "write"), deque[Future[None]]()
        self._failed = False

    def do(self, task: Callable[..., None], *arguments: Any) -> None:
        while len(self._pending) >= AHEAD:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._done, task, *arguments))

    def _done(self, task: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            task(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)


class PartWriter:
    """Collects the batches of a part; `close` brings its folder into place."""

    def __init__(self, folder: Path, part: int, texts: PartTexts, reader: PartReader) -> None:
        self.number, self.place = part, folder / part_name(part)
        self.scratch = folder / f".{part_name(part)}.{uuid.uuid4().hex}"  # another process may make the same part
        self.scratch.mkdir(parents=True)
        self.texts, self.config = texts, reader.config
        self.rewards = np.full(len(texts.texts), np.nan)
        self.raw: Means = {}
        apart = self.config.context_positions == "tokens"
        self.totals = {sae_id: Accumulator(sae.config.d_sae, read_apart=apart) for sae_id, sae in reader.suite.items()}
        self.tokens = TokenWriter(self.scratch, len(texts.texts)) if reader.keep_tokens else None

    def add(
        self, rows: list[int], found: Mapping[str, SparseLatents], rewards: NDArray[np.float64] | None,
        raw: Means | None = None,
    ) -> None:  # fmt: skip
        """Add a batch: rows of the part, latents at their positions one behind the other, rewards, mean activations."""
        if rewards is not None:
            self.rewards[rows] = rewards
        for hookpoint, means in (raw or {}).items():
            if hookpoint not in self.raw:  # with the first batch: a part that waits for its turn takes no memory
                self.raw[hookpoint] = np.full((len(self.texts.texts), means.shape[1]), np.nan, np.float32)
            self.raw[hookpoint][rows] = means
        counts = [len(self.texts.positions[r]) for r in rows]
        stored = StoredPositions(
            np.repeat(np.asarray(rows, dtype=np.int32), counts),
            np.concatenate([self.texts.positions[r] for r in rows]).astype(np.int32),
            np.concatenate([self.texts.flags[r] for r in rows]).astype(np.uint8),
        )
        firings = {sae_id: Firings.of(latents) for sae_id, latents in found.items()}
        for sae_id, total in self.totals.items():
            total.add(stored, firings[sae_id])
        if self.tokens is not None:
            self.tokens.add(stored, firings)

    def close(self) -> None:
        """Write what is left, and rename the folder to its own name."""
        if self.tokens is not None:
            self.tokens.close()
        for sae_id, total in self.totals.items():
            folder, pooled = sae_folder(self.scratch, sae_id), total.close(len(self.texts.texts))
            save_arrays(folder / "pooled.safetensors", pooled.arrays())
            save_arrays(folder / "totals.safetensors", total.totals.arrays())
        if self.config.raw:
            save_arrays(self.scratch / RAW, dict(sorted(self.raw.items())))
        write_parquet(self._texts(), self.scratch / "texts.parquet")
        write_parquet(self._rendered(), self.scratch / "rendered.parquet")
        try:
            self.scratch.rename(self.place)
        except OSError:
            if not self.place.exists():
                raise
            shutil.rmtree(self.scratch)  # somebody else has made the same part meanwhile

    def _texts(self) -> pa.Table:
        rewards = self.rewards.tolist() if self.config.rewards else [None] * len(self.rewards)
        rows = [row | {"reward": reward} for row, reward in zip(self.texts.rows, rewards, strict=True)]
        return pa.Table.from_pylist(rows, schema=TEXTS)

    def _rendered(self) -> pa.Table:
        texts = self.texts.texts
        columns: dict[str, Any] = {
            "text_id": [t.text_id for t in texts],
            "text": [t.text for t in texts],
            "input_ids": [t.input_ids for t in texts],
            "start": [t.offsets[:, 0] for t in texts],
            "end": [t.offsets[:, 1] for t in texts],
            "special": [t.special for t in texts],
            "prompt_span": [list(t.prompt_span) for t in texts],
            "response_span": [list(t.response_span) for t in texts],
        }
        return pa.table(columns, schema=RENDERED)


def write_parquet(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())
