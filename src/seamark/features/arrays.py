"""Arrays and tables on disk: whole, or mapped into memory so that only what is looked at is read."""

from __future__ import annotations

import errno
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from seamark.errors import FormatError
from seamark.run import write_atomic

DTYPES = {"I64": "<i8", "I32": "<i4", "F64": "<f8", "F32": "<f4", "U8": "<u1"}
NAMES = {dtype[1:]: name for name, dtype in DTYPES.items()}
Array = NDArray[Any]


def load_arrays(path: Path) -> dict[str, Array]:
    """Arrays of a safetensors file; `FormatError` where it is missing or damaged."""
    try:
        arrays: dict[str, Array] = safetensors.numpy.load_file(path)
    except (SafetensorError, OSError) as e:
        raise _damaged(path, e) from e
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file, whole or not at all, without a second copy of the arrays in memory.

    Raises:
        FormatError: an array is of a type that scans do not use.
    """
    held = {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()}
    for name, array in held.items():
        if array.dtype.str[1:] not in NAMES:
            raise FormatError(f"no place for {array.dtype} ({name})", where=str(path))
    held = dict(sorted(held.items(), key=lambda item: -item[1].itemsize))  # so that each begins where its type may
    header = safetensors_header({name: (array.dtype, array.shape) for name, array in held.items()})
    write_atomic(path, itertools.chain([header], (array.reshape(-1).view(np.uint8).data for array in held.values())))


def safetensors_header(arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bytes:
    """The beginning of a file whose arrays follow in this order."""
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, (dtype, shape) in arrays.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype.str[1:]], "shape": list(shape), "data_offsets": [begin, end]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    return len(said).to_bytes(8, "little") + said


def map_arrays(path: Path) -> dict[str, Array]:
    """Arrays of a safetensors file, read-only and mapped into memory; `FormatError` where it is missing or damaged.

    They are views of one mapping, which ends with the last of them.
    """
    try:
        whole = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(whole[:8].tobytes(), "little")
        header = json.loads(whole[8 : 8 + size].tobytes())
        data = whole[8 + size :]
        return {name: _viewed(data, about) for name, about in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
        raise _damaged(path, e) from e


def _viewed(data: NDArray[np.uint8], about: dict[str, Any]) -> Array:
    dtype, shape = np.dtype(DTYPES[about["dtype"]]), tuple(int(n) for n in about["shape"])
    begin, end = about["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("sizes that do not fit together")
    found: Array = np.asarray(data[begin:end]).view(dtype).reshape(shape)
    return found


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet table, or some columns of it; `FormatError` where it is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as e:
        raise _damaged(path, e) from e


def _damaged(path: Path, problem: Exception) -> Exception:
    if isinstance(problem, OSError) and problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return problem  # the file is as good as ever
    return FormatError(f"missing or damaged ({problem})", where=str(path), fix="Scan again")
