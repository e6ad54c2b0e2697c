"""Results become tables of the documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import harness, markdown
from benchmarks.harness import Claim, Result

PAGE = "# Page\n\n<!-- toy -->\nstale words\n<!-- /toy -->\n\n<!-- other -->\nkept\n<!-- /other -->\n"


def toy(folder: Path) -> None:
    claims = [
        Claim("good", 6.0, "x", ">= 5", low=5.5, high=7.0, n=5),
        harness.missing("gone", "s", "< 3", "no GPU"),
        Claim("sure", 0.5, "share", low=0.25, high=0.75, n=9, spread="95 % interval over pairs"),
    ]
    rows = [{"table": "speed S", "variant": "v", "x": {"median": 2.0, "low": 1.0, "high": 3.0}, "others_cpu": 0.1},
            {"table": "quality", "variant": "w", "fvu": None, "steps": 12345,
             "stages": {"scan": 2.5, "edits": 1}}]  # fmt: skip
    harness.save(Result("toy", "a toy", claims, rows), 0.25, folder)


def test_a_result_is_put_in_its_place_and_nowhere_else(tmp_path):
    toy(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert markdown.main(page, tmp_path) == 0
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- toy -->\nMeasured 20")
    assert "stale words" not in text
    assert "<!-- other -->\nkept\n<!-- /other -->" in text
    for line in (
        "| good | 6 x (5.5–7) | >= 5 | yes | 5 |", "| gone | not available: no GPU | < 3 |  | 0 |", "**speed S**",
        "| variant | x |", "| v | 2 (1–3) |", "| variant | fvu | steps | stages |",
        "| w | – | 12,345 | scan 2.5, edits 1 |",
        "| sure | 0.5 share [0.25 to 0.75; 95 % interval over pairs] |  |  | 9 |",
        "A toy.",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    date = json.loads((tmp_path / "toy.json").read_text())["date"]
    assert f"Measured {date} on" in text
    markdown.main(page, tmp_path)
    assert page.read_text() == text


def test_the_page_has_places_for_the_benchmarks_it_speaks_of():
    places = {m[1] for m in markdown.PLACE.finditer(markdown.PAGE.read_text())}
    assert places >= {"sae-speed-S", "sae-speed-M", "sae-speed-L", "sae-fvu"}
