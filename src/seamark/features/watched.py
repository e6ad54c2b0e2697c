"""A stream of activations as `fit` sees it: it moves a progress board, and an error says how far training was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor

from seamark.errors import DataError
from seamark.features.activations import ActivationStream
from seamark.run import Board

READING = "(reading)"


class Watched:
    """The stream as `fit` sees it: moves a progress bar, and what goes wrong in reading says how far training was."""

    def __init__(self, stream: ActivationStream, stage: str, batch_size: int) -> None:
        self.stream, self.stage, self.batch_size = stream, stage, batch_size
        self.advance: Callable[[int], None] = lambda _: None
        self._position = 0

    def load(self, title: str) -> None:
        with self._said():
            self.stream.load(title)

    def show(self, shown: Board) -> None:
        """Report to a board: positions given out, and while a block is read how far that is."""

        def told(done: int, of: int) -> None:
            if done < of:
                shown.lines[READING] = f"{done:,}/{of:,} texts"
            else:
                shown.lines.pop(READING, None)
            shown.advance(0)

        self.advance, self.stream.told = shown.advance, told

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.start_at(0)

    def start_at(self, position: int) -> Iterator[dict[str, Tensor]]:
        self._position = position
        with self._said():
            for chunk in self.stream.start_at(position):
                yield chunk
                n = len(next(iter(chunk.values())))
                self._position += n
                self.advance(n)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except DataError as e:
            at = f"step {self._position // self.batch_size} of stage {self.stage}"
            raise DataError(e.what, where=f"{e.where}, {at}", fix=e.fix) from e
