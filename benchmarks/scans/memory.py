"""Peak memory above what a process held when its work began."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def field_mb(name: str) -> float:
    """A size in MB of the kernel's account of this process, such as VmRSS or VmHWM."""
    return next(int(line.split()[1]) / 2**10 for line in STATUS.read_text().splitlines() if line.startswith(name))


class Peak:
    """Begins a new peak now. `above_mb` is None where the system cannot do that (other than Linux)."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading freed is not there to be used again
        self._start: float | None = None
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # the largest size so far is the present one
            self._start = field_mb("VmRSS")

    def above_mb(self) -> float | None:
        """Most memory since the beginning, less what was held then."""
        return None if self._start is None else field_mb("VmHWM") - self._start
