"""The page Pairs: ranking, evidence, filters, and marks that outlive everything."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from made_atlas import BASE, BIDI, SCRIPT, app_of
from made_review import ODD, Made, make_pairs
from starlette.testclient import TestClient

from seamark.atlas.store import Atlas
from seamark.audit import PairScores, score_pairs
from seamark.features import FeatureSet, Scan, ScanConfig, contrast, scan
from seamark.model import load_model
from seamark.sae import SparseAutoencoder
from seamark.show.html import visible
from tiny_run import command, environment

HEADERS = {"X-Seamark": "1"}
PAIRS = {p.id: p for p in make_pairs()}


def client(app: Any) -> TestClient:
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False, headers=HEADERS)


def copied(review: Made, folder: Path) -> Path:
    return Path(shutil.copy(review.atlas, folder / "copy.db"))


@pytest.fixture(scope="module")
def web(review: Made) -> TestClient:
    """Nobody marks here."""
    settings = {"scans": (review.scan,), "pairs": {g: (str(review.pairs),) for g in ("safety", "chat")}}
    return client(app_of(review.atlas, **settings))


@pytest.fixture
def marking(review: Made, tmp_path: Path) -> TestClient:
    return client(app_of(copied(review, tmp_path), scans=(review.scan,)))


@pytest.fixture(scope="module")
def made(review: Made) -> Scan:
    return review.open_scan()


@pytest.fixture(scope="module")
def features(made: Scan) -> FeatureSet:
    return contrast(made, "safety", "safer").top(32)


def ids_of(page: str) -> list[str]:
    from urllib.parse import unquote

    return [unquote(unescape(found)) for found in re.findall(r'<article class="pair" data-pair="([^"]*)"', page)]


def listed(web: TestClient, **query: Any) -> list[str]:
    answer = web.get("/api/v1/pairs", params={"limit": 50, **query})
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == len(answer.json()["pairs"])
    return [p["id"] for p in answer.json()["pairs"]]


def test_pairs_are_ranked_by_their_scores(web: TestClient, made: Scan, features: FeatureSet) -> None:
    safer = score_pairs(made, features)
    assert listed(web) == safer.lowest(50)
    found = web.get("/api/v1/pairs", params={"limit": 50}).json()["pairs"]
    assert [p["score"] for p in found] == sorted(p["score"] for p in found)
    assert {p["id"]: p["score"] for p in found} == pytest.approx(safer.values)
    assert {p["id"]: p["margin"] for p in found} == pytest.approx(made.margins())
    for method in ("margin", "length"):
        assert listed(web, score=method) == score_pairs(made, method=method).lowest(50)
    assert listed(web, highest=True) == listed(web)[::-1]
    chat = contrast(made, "chat", "safer").top(32)
    assert listed(web, features="contrast:chat:safer") == score_pairs(made, chat).lowest(50) != listed(web)


def test_the_page_shows_them_in_that_order_by_pages(web: TestClient) -> None:
    seen: list[str] = []
    address: str | None = "/pairs?limit=7"
    while address:
        page = web.get(address).text
        assert ' style="' not in page
        seen += ids_of(page)
        following = re.search(r'<a rel="next" href="([^"]*)"', page)
        address = unescape(following[1]) if following else None
    assert seen == listed(web)
    assert "24 pairs, lowest score first" in " ".join(page.split())


def test_filters(web: TestClient) -> None:
    by = {"group": "safety", "source": "forum", "category": "cooking"}
    for name, value in by.items():
        fitting = {i for i, p in PAIRS.items() if getattr(p, name) == value}
        if name != "group":
            fitting -= {ODD}  # its row holds a NUL, so no file tells where it came from
        assert set(listed(web, **{name: value})) == fitting
        assert 0 < len(fitting) < len(PAIRS)
    both = {i for i, p in PAIRS.items() if p.group == "safety" and p.source == SCRIPT}
    assert set(listed(web, group="safety", source=SCRIPT)) == both
    page = web.get("/pairs?group=safety").text
    assert '<option value="forum"' in page
    assert f'<option value="{SCRIPT.replace("<", "&lt;").replace(">", "&gt;")}"' in page
    alone = web.get("/pairs", params={"pair": ODD}).text
    assert ids_of(alone) == [ODD]


def test_evidence_is_that_of_the_scan(web: TestClient, made: Scan, features: FeatureSet) -> None:
    found = web.get("/api/v1/pair", params={"scan": "reward-scan", "pair": "pair-7"}).json()
    for side in ("chosen", "rejected"):
        told = made.token_scores(f"pair-7:{side}", features)
        assert found["pair"][side]["tokens"] == list(told.tokens)
        assert found["pair"][side]["values"] == pytest.approx(told.values)
    assert [(f["sae"], f["latent"], f["sign"]) for f in found["features"]] == [
        (f.sae, f.latent, f.sign) for f in features.features
    ]
    for f in found["features"]:
        there = f["latent"] < 86
        assert (f["url"] is not None) == there
        if there and f["latent"] % 4:
            assert f["label"].startswith(f"safer harbour {f['latent']} ")
    page = web.get("/pairs", params={"pair": "pair-7"}).text
    shaded = re.findall(r'<span class="t (for|against) l\d+" title="([^"]*)" data-i="(\d+)">', page)
    told = [made.token_scores(f"pair-7:{side}", features).values for side in ("chosen", "rejected")]
    assert len(shaded) == sum(v != 0 for values in told for v in values) > 5
    first = [(tone, int(i)) for tone, _, i in shaded][: sum(v != 0 for v in told[0])]
    assert first == [("for" if v > 0 else "against", i) for i, v in enumerate(told[0]) if v]
    assert page.count("data-i=") == len(told[0]) + len(told[1])
    assert "Against the label" in page or "For the label" in page


def test_hostile_pairs_are_inert(web: TestClient) -> None:
    page = web.get("/pairs", params={"pair": ODD}).text
    assert SCRIPT not in page
    assert BIDI not in page
    assert "\0" not in page
    assert visible("\0") in page
    assert "onmouseover='x'" not in page
    assert f'data-pair="{quote(ODD)}"' in page
    assert web.get("/api/v1/pair", params={"scan": "reward-scan", "pair": ODD}).json()["pair"]["id"] == ODD
    link = re.search(r'<a href="([^"]*)" data-slot="alone">', page)
    assert link
    assert ids_of(web.get(unescape(link[1])).text) == [ODD]


def test_long_texts_are_cut_with_a_note(web: TestClient) -> None:
    page = " ".join(web.get("/pairs", params={"limit": 50}).text.split())
    article = page.split('data-pair="pair-5"')[1].split("</article>")[0]
    whole = web.get("/api/v1/pair", params={"scan": "reward-scan", "pair": "pair-5"}).json()["pair"]["chosen"]["tokens"]
    shown = article.split('data-side="chosen"')[1].split('data-side="rejected"')[0].count("data-i=")
    if len(whole) > 240:
        assert shown == 240
        assert re.search(r"… \d+ tokens (before|after)", article)
    else:  # the model's own limit was shorter
        assert shown == len(whole)
        assert "tokens were cut off" in article


def test_score_files_and_feature_files(review: Made, tmp_path: Path, features: FeatureSet) -> None:
    few = FeatureSet(features=features.features[:3])
    few.save(tmp_path / "mine.json")
    PairScores(method="odd", values={"pair-3": 1.0, "pair-9": -2.0, "unknown": 5.0}).save(tmp_path / "scores.json")
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    web = client(app_of(review.atlas, scans=(review.scan,), features=(tmp_path / "mine.json",),
                        scores=(tmp_path / "scores.json", tmp_path / "broken.json")))  # fmt: skip
    assert listed(web) == score_pairs(review.open_scan(), few).lowest(50), "a file comes before what is found"
    ranked = listed(web, score="file:scores.json")
    assert ranked[:2] == ["pair-9", "pair-3"]
    assert len(ranked) == 24
    found = web.get("/api/v1/pairs", params={"score": "file:scores.json", "limit": 50}).json()["pairs"]
    assert [p["score"] for p in found] == [-2.0, 1.0] + [None] * 22
    assert listed(web, score="file:scores.json", highest=True)[:2] == ["pair-3", "pair-9"]
    assert "score not available" in " ".join(web.get("/pairs?score=file:scores.json&offset=20").text.split())
    broken = web.get("/api/v1/pairs", params={"score": "file:broken.json"})
    assert broken.status_code == 400
    assert "not a file of pair scores" in broken.json()["error"]["what"]


def test_files_of_a_run_are_found_by_themselves(review: Made, tmp_path: Path, features: FeatureSet) -> None:
    place = tmp_path / "run" / "clean" / "scan" / "scan"
    shutil.copytree(review.scan, place)
    (tmp_path / "run" / "clean" / "features").mkdir()
    (tmp_path / "run" / "data").mkdir()
    FeatureSet(features=features.features[:2]).save(tmp_path / "run" / "clean" / "features" / "features.json")
    make_pairs().to_jsonl(tmp_path / "run" / "data" / "train.jsonl")
    web = client(app_of(review.atlas, scans=(place,)))
    page = web.get("/pairs").text
    assert '<option value="file:features.json" selected>' in page
    assert set(listed(web, source="forum")) == {i for i, p in PAIRS.items() if p.source == "forum"}
    (tmp_path / "run" / "data" / "train.jsonl").write_text("[1]\n", encoding="utf-8")
    broken = client(app_of(review.atlas, scans=(place,)))
    page = broken.get("/pairs")
    assert page.status_code == 200
    assert "not the pairs of a run" in page.text


@pytest.mark.parametrize(("path", "query", "status"), [
    ("/pairs", {"scan": "none"}, 404), ("/pairs", {"score": "none"}, 404), ("/pairs", {"features": "none"}, 404),
    ("/pairs", {"group": SCRIPT}, 404), ("/pairs", {"pair": "none"}, 404), ("/pairs", {"mark": "odd"}, 422),
    ("/pairs", {"offset": "-1"}, 422), ("/pairs", {"limit": "1000"}, 422), ("/pairs", {"offset": "100000"}, 200),
    ("/api/v1/pairs", {"scan": "../.."}, 404), ("/api/v1/pair", {"scan": "reward-scan", "pair": "none"}, 404),
    ("/api/v1/pair", {}, 422), ("/api/v1/marks", {"scan": "none"}, 404), ("/api/v1/marks", {"format": "exe"}, 422),
])  # fmt: skip
def test_what_is_not_there(web: TestClient, path: str, query: dict[str, str], status: int) -> None:
    answer = web.get(path, params=query)
    assert answer.status_code == status
    assert SCRIPT not in answer.text


def test_a_scan_in_which_nothing_can_be_contrasted(review: Made, tmp_path: Path) -> None:
    """No pair of the group has positions on both sides: the page falls back, and says why."""
    suite = {"safer": SparseAutoencoder.from_pretrained(review.saes["safer"])}
    pairs = make_pairs(6)
    empty = pairs.with_items(p.__class__(p.id, "chat", p.prompt, p.chosen, "") for p in pairs)
    scan(load_model(review.reward), suite, empty, tmp_path / "empty", config=ScanConfig(keep_tokens="always"))
    web = client(app_of(review.atlas, scans=(tmp_path / "empty",)))
    page = web.get("/pairs")
    assert page.status_code == 200
    assert "No features speak for or against" in page.text
    assert '<option value="margin" selected>' in page.text
    assert len(ids_of(page.text)) == 5


# ---- marks


def mark(web: TestClient, pair: str, value: str | None, note: str = "", **more: Any) -> Any:
    return web.post("/api/v1/marks", json={"scan": "reward-scan", "pair": pair, "mark": value, "note": note} | more)


def test_marks_are_kept_shown_and_taken_back(marking: TestClient, review: Made) -> None:
    answer = mark(marking, ODD, "wrong", f"swapped {SCRIPT}")
    assert answer.status_code == 200
    assert answer.json() | {"time": ""} == {
        "pair": ODD, "group": PAIRS[ODD].group, "mark": "wrong", "note": f"swapped {SCRIPT}", "time": ""}  # fmt: skip
    assert mark(marking, "pair-2", "fine").json()["mark"] == "fine"
    assert mark(marking, "pair-2", "wrong", "changed my mind").json()["note"] == "changed my mind"
    key = review.open_scan().manifest["key"]
    with Atlas.open(marking.app.state.seamark.settings.atlas) as atlas:  # another reader sees them at once
        kept = atlas.marks(key)
    assert {i: m.mark for i, m in kept.items()} == {ODD: "wrong", "pair-2": "wrong"}
    page = marking.get("/pairs", params={"pair": ODD}).text
    assert 'data-mark="wrong" aria-pressed="true"' in page
    assert 'data-mark="fine" aria-pressed="false"' in page
    assert "marked as wrong" in page
    assert SCRIPT not in page
    assert set(listed(marking, mark="wrong")) == {ODD, "pair-2"}
    assert listed(marking, mark="fine") == []
    assert set(listed(marking, mark="any")) == {ODD, "pair-2"}
    assert set(listed(marking, mark="none")) == set(PAIRS) - {ODD, "pair-2"}
    taken = mark(marking, "pair-2", None)
    assert (taken.status_code, taken.json()["mark"]) == (200, None)
    assert listed(marking, mark="any") == [ODD]


def test_marks_are_exported(marking: TestClient) -> None:
    notes = {ODD: f'=1+1, "{SCRIPT}"\nsecond line {BIDI}', "pair-1": "港口", "pair-2": ""}
    for pair, note in notes.items():
        assert mark(marking, pair, "fine" if pair == "pair-1" else "wrong", note).status_code == 200
    lines = marking.get("/api/v1/marks?scan=reward-scan&format=jsonl")
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert "attachment" in lines.headers["content-disposition"]
    rows = [json.loads(line) for line in lines.text.splitlines()]
    assert [list(row) for row in rows] == [["pair", "group", "mark", "note", "time"]] * 3
    assert {row["pair"]: row["note"] for row in rows} == notes
    assert marking.get("/api/v1/marks").json() == rows
    table = marking.get("/api/v1/marks?format=csv")
    assert table.headers["content-type"].startswith("text/csv")
    parsed = list(csv.DictReader(io.StringIO(table.text.removeprefix("\ufeff"))))
    assert [row["mark"] for row in parsed] == [row["mark"] for row in rows]
    assert parsed[0]["note"].startswith("'=1+1"), "what a spreadsheet program would run is made harmless"
    assert BIDI not in table.text


@pytest.mark.parametrize(("said", "status"), [
    ({"pair": "none"}, 404), ({"scan": "none"}, 404), ({"mark": "maybe"}, 422), ({"note": "x" * 2001}, 422),
    ({"extra": 1}, 422), ({"pair": 5}, 422), ({"mark": SCRIPT}, 422), ({"note": None}, 422),
])  # fmt: skip
def test_what_cannot_be_marked(marking: TestClient, said: dict[str, Any], status: int) -> None:
    body = {"scan": "reward-scan", "pair": "pair-1", "mark": "wrong", "note": ""} | said
    assert marking.post("/api/v1/marks", json=body).status_code == status
    assert marking.get("/api/v1/marks").json() == []


def test_a_read_only_server_keeps_no_marks(review: Made, tmp_path: Path) -> None:
    path = copied(review, tmp_path)
    before = path.read_bytes()
    web = client(app_of(path, scans=(review.scan,), read_only=True))
    assert mark(web, "pair-1", "wrong").status_code == 403
    page = web.get("/pairs").text
    assert "This server is read-only" in page
    assert re.search(r'data-mark="wrong"[^>]* disabled>', page)
    assert path.read_bytes() == before
    assert web.get("/api/v1/marks").json() == []


def test_other_sites_cannot_mark(marking: TestClient) -> None:
    said = {"scan": "reward-scan", "pair": "pair-1", "mark": "wrong"}
    assert (
        marking.post("/api/v1/marks", json=said, headers={"X-Seamark": "1", "Sec-Fetch-Site": "cross-site"}).status_code
        == 403
    )
    assert marking.post("/api/v1/marks", data=said).status_code == 415
    assert marking.get("/api/v1/marks").json() == []


def test_many_people_mark_at_once(marking: TestClient) -> None:
    codes: list[int] = []

    def several(number: int) -> None:
        web = client(marking.app)
        for i in range(number, 24, 6):
            pair = list(PAIRS)[i]
            codes.append(mark(web, pair, "wrong" if i % 2 else "fine", f"by {number}").status_code)

    threads = [threading.Thread(target=several, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [200] * 24
    kept = {m["pair"]: (m["mark"], m["note"]) for m in marking.get("/api/v1/marks").json()}
    assert kept == {p: ("wrong" if i % 2 else "fine", f"by {i % 6}") for i, p in enumerate(PAIRS)}


@pytest.fixture
def server(review: Made, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A real server process: (process, address, atlas)."""
    path = copied(review, tmp_path)
    words = command("serve", path, "--scan", review.scan, "--port", 0, "--json")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"].rstrip("/"), path
    finally:
        process.kill()
        process.wait(20)


def test_every_acknowledged_mark_outlives_a_kill(server: Any, review: Made) -> None:
    process, url, path = server
    acknowledged: dict[str, str] = {}
    enough = threading.Event()

    def say(number: int) -> None:
        for turn in range(10_000):
            pair, note = f"pair-{1 + number}", f"{number}.{turn}"
            body = json.dumps({"scan": "reward-scan", "pair": pair, "mark": "wrong", "note": note}).encode()
            request = urllib.request.Request(f"{url}/api/v1/marks", body,
                                             {"Content-Type": "application/json", "X-Seamark": "1"})  # fmt: skip
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    assert answer.status == 200
                    answer.read()
            except OSError:
                return
            acknowledged[pair] = note
            if turn >= 15:
                enough.set()

    threads = [threading.Thread(target=say, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert process.wait(20) == -signal.SIGKILL
    assert len(acknowledged) == 3
    with Atlas.open(path) as atlas:
        kept = atlas.marks(review.open_scan().manifest["key"])
        assert atlas.overview().features > 0
    for pair, note in acknowledged.items():
        # the one that was under way may have been kept without anybody being told
        turn = int(kept[pair].note.split(".")[1])
        assert turn in (int(note.split(".")[1]), int(note.split(".")[1]) + 1)
