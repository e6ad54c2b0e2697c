"""Reading files nobody vouches for: no code is run, nothing is unpacked that the file cannot hold."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from seamark.errors import FormatError

AGAIN = "Fetch or save it again"
_JSON_BYTES = 32 << 20
# Weights hardly compress: an archive that claims to unpack to far more than its own size is a trap.
_RATIO, _SLACK = 20, 64 << 20
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; `FormatError` where there is none."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise FormatError("too large to be a config", where=str(path))
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:  # bad JSON, bad UTF-8, numbers of thousands of digits
        raise FormatError(f"not readable as JSON ({_line(e)})", where=str(path), fix=AGAIN) from e
    except OSError as e:
        raise _unreadable(path, e) from e
    if not isinstance(found, dict):
        raise FormatError(f"holds a {type(found).__name__}, not a JSON object", where=str(path), fix=AGAIN)
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; `FormatError` on a damaged one."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except OSError as e:
        raise _unreadable(path, e) from e
    except (SafetensorError, ValueError, KeyError) as e:
        raise FormatError(f"damaged weights ({_line(e)})", where=str(path), fix=AGAIN) from e
    return tensors


def read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote of a dictionary, tensors on the CPU. Code in the file is refused, not run.

    Raises:
        FormatError: the file is damaged, holds code, no dictionary, or a tensor larger than the file.
    """
    zipped = _is_zip(path)
    if zipped:
        _refuse_bomb(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles other than torch's, which are refused below
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as e:
        raise _unreadable(path, e) from e
    except Exception as e:  # unpickling a damaged file can raise anything
        code = _GLOBAL.search(str(e))
        if code or "weights_only" in str(e) or "Weights only" in str(e):
            what = f"it holds Python code ({code[1]})" if code else "it holds more than weights"
            fix = "Seamark never runs code from a file. Save the weights alone: torch.save(model.state_dict(), …)"
            raise FormatError(what, where=str(path), fix=fix) from e
        raise FormatError(f"damaged weights ({_line(e)})", where=str(path), fix=AGAIN) from e
    if not isinstance(found, Mapping):
        raise FormatError(f"holds a {type(found).__name__}, not named tensors", where=str(path))
    size = path.stat().st_size
    for name, value in found.items():
        if isinstance(value, Tensor) and not _fits(value, size):
            raise FormatError(f"tensor {name} claims more memory than the file has", where=str(path), fix=AGAIN)
    return {str(name): value for name, value in found.items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a NumPy archive as tensors; `FormatError` on a damaged one or one of Python objects."""
    if not _is_zip(path):
        raise FormatError("not a NumPy archive", where=str(path), fix=AGAIN)
    _refuse_bomb(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as f:
                    _refuse_large_array(f, member)
        with np.load(path) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except OSError as e:
        raise _unreadable(path, e) from e
    except Exception as e:  # NumPy and zipfile raise many kinds on damaged input
        objects = "allow_pickle" in str(e) or "object" in str(e)
        what = "it holds Python objects" if objects else f"damaged weights ({_line(e)})"
        raise FormatError(what, where=str(path), fix=AGAIN) from e


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of float32 tensors, whole or not at all, without a second copy in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    ready = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in sorted(tensors.items())}
    try:
        safetensors.torch.save_file(ready, temporary, metadata={"format": "pt"})
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb"):
            pass
    except OSError as e:
        raise _unreadable(path, e) from e
    return zipfile.is_zipfile(path)


def _refuse_bomb(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as e:
        raise FormatError(f"damaged archive ({_line(e)})", where=str(path), fix=AGAIN) from e
    if unpacked > _RATIO * path.stat().st_size + _SLACK:
        raise FormatError(f"unpacks to {unpacked / 1e9:.1f} GB, which no weights do", where=str(path))


def _refuse_large_array(f: Any, member: zipfile.ZipInfo) -> None:
    version = np.lib.format.read_magic(f)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(f)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is cut off")


def _fits(tensor: Tensor, size: int) -> bool:
    return tensor.layout == torch.strided and tensor.numel() * tensor.element_size() <= size


def _unreadable(path: Path, e: OSError) -> FormatError:
    if isinstance(e, FileNotFoundError):
        return FormatError("file not found", where=str(path), fix="Fetch or save the autoencoder again")
    return FormatError(f"cannot be read ({e.strerror or _line(e)})", where=str(path))


def _line(e: BaseException) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 160 else text[:157] + "…"
