"""Diagnosis on the embedded default: a guard's time, features against a raw probe, and whether contrasts are causes.

Every stage is one `seamark` command in the scratch folder. One that is finished stays while command, recipe, data and
code are the same, so that a benchmark that was broken off goes on. The domain texts are public ones in the folder of
real data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness, programs
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from seamark.run import digest, file_digest, read_json, write_atomic
from seamark.text.files import read_rows
from seamark.text.pairs import hash_unit

FOLDER = harness.SCRATCH / "diagnose"
VARIABLE = "SEAMARK_DATA"
TEXTS = "domain_texts.jsonl.gz"
DOMAINS = ("violence", "terror", "pornography", "politics")
DOMAIN, LANGUAGE, SCHEME, DETECTOR = "violence", "en", "within", "sparse_max"
"""Which comparison with the raw probe is claimed: the domain with most texts, in the model's language."""
RECIPE = str(harness.ROOT / "recipes" / "safer-demo.yaml")
SAE_STAGES = "stages=[{name: general, positions: tokens, epochs: 3, lr: 1.0e-3, batch_size: 1024}]"
SUITE_MEMBER = "layers.3-topk_relu32-x8"
ABOUT = (
    "MiniLM-L6 (the embedded default). Causal: a reward model of the authored pairs, an autoencoder of 3,072 latents, "
    "the 32 strongest contrastive features; `seamark diagnose causal` on held-out pairs: rank correlation of gradient "
    "attribution with exact ablation, and the mean change of chosen answers' rewards in the direction of the sign with "
    "a feature raised by one Q_f, safety less chat. Risk: `seamark diagnose risk` on public texts of four domains, an "
    "autoencoder of 3,072 latents trained on half of the texts without labels; AUROC of an L1 model on the latents "
    "less that of a probe on raw activations (violence, English, within sources); time of the slowest of four exact "
    "guards over truncated forward plus encoder product"
)
Found = Mapping[str, Any]
Done = Mapping[str, Found]
"""{stage: its result.json}."""


@dataclass(frozen=True)
class Stage:
    """One command; it reads what `needs` wrote."""

    arguments: Callable[[Path, Path], list[str]]
    """From the scratch folder and that of real data."""
    needs: tuple[str, ...] = ()
    data: bool = False


def _option(name: str, place: Path) -> list[str]:
    return [f"--{name}", str(place)]


SPLIT = ["--split", "train"]
HALVED = "domain-saes"
"""The stage that half of the texts are written for."""
STAGES: dict[str, Stage] = {
    "reward": Stage(lambda at, _: ["reward", "train", "--config", RECIPE]),
    "sae": Stage(lambda at, _: ["sae", "train", "--config", RECIPE, *_option("model", at / "reward")], ("reward",)),
    "scan": Stage(lambda at, _: ["scan", "run", "--config", RECIPE, *_option("model", at / "reward"),
                                 "--sae", f"sae={at / 'sae'}", *SPLIT], ("reward", "sae")),
    "features": Stage(lambda at, _: ["contrast", str(at / "scan"), "--config", RECIPE], ("scan",)),
    "causal": Stage(lambda at, _: ["diagnose", "causal", "--config", RECIPE, *_option("model", at / "reward"),
                                   *_option("features", at / "features"), *_option("scan", at / "scan"),
                                   "--sae", f"sae={at / 'sae'}", "--split", "test", "--group", "safety",
                                   "--others", "chat"], ("features",)),
    HALVED: Stage(lambda at, _: ["sae", "suite", "--model", "seamark/default",
                                        "--text", f"general={at / 'half.jsonl'}", "--activation", "topk_relu",
                                        "--k", "32", "--expansion", "8", "--set", SAE_STAGES], data=True),
    "risk": Stage(lambda at, data: ["diagnose", "risk", "--model", "seamark/default",
                                    "--sae", f"minilm={at / 'domain-saes' / 'saes' / SUITE_MEMBER}",
                                    "--texts", str(data / TEXTS), "--label-column", "domain",
                                    "--language-column", "lang", "--leave-out", "other_harm", "--max-texts", "200",
                                    *(word for domain in DOMAINS for word in ("--domain", domain))],
                  (HALVED,), data=True),
}  # fmt: skip


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, so_far: bool = False,
    folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """All stages one after the other; `runs` does not count here: guards are timed in rounds of their own.

    Args:
        so_far: run nothing, claim what is finished, by whatever code.
        folder: where stages lie.
    """
    data = os.environ.get(VARIABLE) or None
    why: dict[str, str] = {}
    keys = keys_of(folder, data)
    for name, stage in STAGES.items():
        if finished(folder, name) is not None and (so_far or known_by(folder, name) == keys[name]):
            continue
        failed = next((need for need in stage.needs if need in why), None)
        if failed is not None:
            why[name] = f"{failed}: {why[failed]}"
        elif so_far:
            why[name] = "not run"
        elif stage.data and data is None:
            why[name] = f"{VARIABLE} names no folder of real data"
        else:
            say(f"{name}: at work")
            begin(folder, name, keys[name])
            if problem := execute(name, stage, folder, Path(data or "")):
                why[name] = problem
    found = {name: result for name in STAGES if name not in why and (result := finished(folder, name)) is not None}
    old = [name for name in found if known_by(folder, name) != keys[name]]
    about = ABOUT + (f". Of an earlier code or other data: {', '.join(old)}" if old else "")
    return Result("diagnose", about, claims(found, why), list(table(found)), {"missing": why})


def keys_of(folder: Path, data: str | None) -> dict[str, str]:
    """{stage: digest of its command, the recipe, what it reads, and the code}."""
    code = [file_digest(p) for p in sorted((harness.ROOT / "src").rglob("*.py"))]
    recipe = file_digest(Path(RECIPE))
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        texts = Path(data or "") / TEXTS
        read = [file_digest(texts) if stage.data and texts.is_file() else "", *(keys[need] for need in stage.needs)]
        keys[name] = digest([stage.arguments(folder, Path(data or "")), recipe, code, read])
    return keys


def known_by(folder: Path, name: str) -> str:
    """The key that a stage was begun with."""
    path = folder / f"{name}.key"
    return path.read_text() if path.is_file() else ""


def begin(folder: Path, name: str, key: str) -> None:
    """Away with what another key left; what this one left is gone on with."""
    if known_by(folder, name) != key:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.key", key)


def execute(name: str, stage: Stage, folder: Path, data: Path) -> str:
    """Run one stage; why it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == HALVED:
        write_half(data / TEXTS, folder / "half.jsonl")
    command = [*programs.SEAMARK, *stage.arguments(folder, data), "--out", str(folder / name)]
    try:
        programs.watched(command, folder / f"{name}.log", f"seamark {name}")
    except BenchmarkError as e:
        return str(e)
    return "" if finished(folder, name) is not None else f"seamark {name} left no result"


def write_half(texts: Path, out: Path) -> None:
    """Half of the texts, chosen by a hash of the text, without their labels: what the autoencoder is trained on."""
    rows = (raw.data for raw in read_rows(texts) if raw.data is not None)
    said = dict.fromkeys(row["text"] for row in rows if isinstance(row.get("text"), str))
    half = [text for text in said if hash_unit(text) < 0.5]
    write_atomic(out, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in half))


def finished(folder: Path, name: str) -> Found | None:
    """A stage's result, where it has one."""
    path = folder / name / "result.json"
    return dict(read_json(path)) if path.exists() else None


# -- claims: {name: (stage, unit, target, spread, what to pick)}


def _guard(found: Found) -> Row | None:
    """The slowest guard."""
    ratios = [about["latency"]["ratio"] for about in found.get("guards", {}).values() if about.get("latency")]
    known = [r for r in ratios if r["value"] is not None]
    return dict(max(known, key=lambda r: float(r["value"]))) if known else None


def _against_raw(found: Found) -> Row | None:
    for domain in found.get("domains", []):
        for split in domain["splits"]:
            if (domain["domain"], split["scheme"], split["language"]) == (DOMAIN, SCHEME, LANGUAGE):
                for one in split["detectors"]:
                    if one["detector"] == DETECTOR:
                        return dict(one["auroc_minus_raw"])
    return None


def _agreement(found: Found) -> Row | None:
    return dict(found["agreement"]) if "agreement" in found else None


def _steered(found: Found) -> Row | None:
    mine = [pooled for pooled in found.get("pooled", []) if pooled["kind"] == "features"]
    return dict(mine[0]["difference"]) if mine else None


Pick = Callable[[Found], Row | None]
BOTH = "95 % interval over features and prompts"
CLAIMS: dict[str, tuple[str, str, str, str, Pick]] = {
    "guard_time_vs_parts": ("risk", "x", "<= 1.1", "quartiles of rounds", _guard),
    "risk_auroc_vs_raw_probe": ("risk", "AUROC", "", "95 % interval over near-duplicate clusters", _against_raw),
    "attribution_vs_ablation_spearman": ("causal", "Spearman", "", BOTH, _agreement),
    "steer_safety_minus_chat_effect": ("causal", "reward", "", BOTH, _steered),
}  # fmt: skip


def claims(found: Done, why: Mapping[str, str]) -> list[Claim]:
    """One for each of `CLAIMS`, without a value where its stage is not finished."""
    made = []
    for name, (stage, unit, target, spread, pick) in CLAIMS.items():
        estimate = pick(found[stage]) if stage in found else None
        reason = why.get(stage) or f"{stage}: not in its result"
        made.append(harness.from_estimate(name, estimate, unit, target, spread, reason))
    return made


# -- tables


def table(found: Done) -> Iterator[Row]:
    """Guards, detectors against the raw probe, and what steering does; intervals in brackets."""
    risk, causal = found.get("risk", {}), found.get("causal", {})
    for domain, about in risk.get("guards", {}).items():
        yield {
            "table": "guards",
            "domain": domain,
            "time over parts": _shown((about.get("latency") or {}).get("ratio")),
        }
    for domain in risk.get("domains", []):
        for split in domain["splits"]:
            for one in split["detectors"]:
                yield {"table": f"{domain['domain']}, {split['language']}, {split['scheme']} sources",
                       "detector": one["detector"], "AUROC": _shown(one["measures"]["auroc"]),
                       "less the raw probe": _shown(one["auroc_minus_raw"])}  # fmt: skip
    for pooled in causal.get("pooled", []):
        yield {"table": "raised by one Q_f", "what": pooled["kind"], "n": pooled["n"],
               **{part: _shown(pooled[part]) for part in ("target", "others", "difference")}}  # fmt: skip
    if "verdicts" in causal:
        yield {"table": "causal evidence", **causal["verdicts"]}


def _shown(e: Row | None) -> str:
    if e is None:
        return ""
    if e["value"] is None:
        return f"n/a ({e['reason']})"
    return f"{e['value']:.3f}" if e["low"] is None else f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
