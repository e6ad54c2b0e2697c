"""Auditing preference data: pair scores, poisoning, denoising, undo, and the report."""

from seamark.audit.editing import Edit, denoise, inject_noise, poison, undo, undo_file, write_edit
from seamark.audit.manifest import EditManifest
from seamark.audit.report import render_report, write_report
from seamark.audit.report_data import ReportData
from seamark.audit.scores import METHODS, PairScores, score_pairs

__all__ = [
    "METHODS",
    "Edit",
    "EditManifest",
    "PairScores",
    "ReportData",
    "denoise",
    "inject_noise",
    "poison",
    "render_report",
    "score_pairs",
    "undo",
    "undo_file",
    "write_edit",
    "write_report",
]
