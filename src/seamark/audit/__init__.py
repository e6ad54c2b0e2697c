"""Auditing preference data: pair scores, poisoning, denoising, undo, and the report."""

from seamark.audit.combine import Combination, learn
from seamark.audit.detection import Calibration, Detection, Trial, calibration, compare, detect
from seamark.audit.editing import Edit, denoise, inject_noise, poison, undo, undo_file, write_edit
from seamark.audit.manifest import EditManifest
from seamark.audit.noise import make_noise
from seamark.audit.report import render_report, write_report
from seamark.audit.report_data import ReportData
from seamark.audit.scores import METHODS, Method, PairScores, ScoreInputs, score_pairs
from seamark.audit.share import wrong_share

__all__ = [
    "METHODS",
    "Calibration",
    "Combination",
    "Detection",
    "Edit",
    "EditManifest",
    "Method",
    "PairScores",
    "ReportData",
    "ScoreInputs",
    "Trial",
    "calibration",
    "compare",
    "denoise",
    "detect",
    "inject_noise",
    "learn",
    "make_noise",
    "poison",
    "render_report",
    "score_pairs",
    "undo",
    "undo_file",
    "write_edit",
    "write_report",
    "wrong_share",
]
