"""How work is done: run folders and stages, cells side by side, whole files, progress."""

from seamark.run.files import (
    canonical_json,
    digest,
    disk_errors,
    file_digest,
    read_json,
    to_jsonable,
    versions,
    write_atomic,
    write_json,
)
from seamark.run.folder import MANIFEST, Run, Stage, result_digest
from seamark.run.watch import Board, RssMeter, board, progress, say
from seamark.run.workers import Workers, give_back_memory

__all__ = [
    "MANIFEST",
    "Board",
    "RssMeter",
    "Run",
    "Stage",
    "Workers",
    "board",
    "canonical_json",
    "digest",
    "disk_errors",
    "file_digest",
    "give_back_memory",
    "progress",
    "read_json",
    "result_digest",
    "say",
    "to_jsonable",
    "versions",
    "write_atomic",
    "write_json",
]
