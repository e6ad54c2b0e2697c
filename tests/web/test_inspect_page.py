"""The page Inspect and its operation: activations, labels, limits, one text at a time, nothing kept."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_atlas import BASE, BIDI, SCRIPT, app_of
from made_review import D_SAE, Made
from starlette.testclient import TestClient

from seamark.atlas.store import Atlas
from seamark.diagnose import inspect_text
from seamark.errors import ConfigError
from seamark.features import Scan
from seamark.model import load_model
from seamark.sae import SparseAutoencoder
from seamark.web import inspecting
from seamark.web.inspecting import BusyError, Inspector, Turns
from seamark.web.state import feature_path

PROMPT, ANSWER = "Is it safe to mix bleach and ammonia?", "No, please never do that; the fumes are toxic."
HEADERS = {"X-Seamark": "1"}


def client(app: Any) -> TestClient:
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False, headers=HEADERS)


@pytest.fixture(scope="module")
def app(review: Made) -> Any:
    return app_of(review.atlas, model=review.language, saes={"words": str(review.saes["words"])})


@pytest.fixture
def web(app: Any) -> TestClient:
    return client(app)


@pytest.fixture(scope="module")
def rewarding(review: Made) -> TestClient:
    return client(app_of(review.atlas, model=review.reward, saes={"safer": str(review.saes["safer"])},
                         scans=(review.scan,), read_only=True))  # fmt: skip


def test_the_page(web: TestClient, review: Made) -> None:
    page = web.get("/inspect").text
    assert page.count("<h1") == 1
    assert ' style="' not in page
    assert 'href="/inspect" aria-current="page"' in page
    assert "layers.1" in page
    assert 'name="write"' in page
    assert "not part of the address" in page
    watched = web.get("/inspect", params={"sae": "words", "latent": 5}).text
    assert 'data-sae="words" data-latent="5"' in watched
    assert f'href="{feature_path("words", 5)}"' in watched
    for sae, latent in (("words", D_SAE), ("words", "x"), ("words", "5" * 40), (SCRIPT, 1), ("words", "٣")):
        odd = web.get("/inspect", params={"sae": sae, "latent": latent})
        assert odd.status_code == 200
        assert "data-latent" not in odd.text
        assert SCRIPT not in odd.text


def test_units_of_another_autoencoder_of_that_name_are_not_taken(review: Made, atlas_file: Path) -> None:
    def inspector(sae: str) -> Inspector:
        app = app_of(atlas_file, model=review.reward, saes={"safer": str(review.saes[sae])}, scans=(review.scan,))
        return Inspector(app.state.seamark)

    own, foreign = inspector("safer"), inspector("words")
    assert [saes for _, saes in own.scans] == [{"safer"}]
    assert [saes for _, saes in foreign.scans] == [set()]
    np.testing.assert_array_equal(own.units()["safer"], Scan.open(review.scan).q("safer"))
    assert "safer" not in foreign.units() or not np.array_equal(foreign.units()["safer"], own.units()["safer"])


def test_a_server_without_a_model_reads_no_text(review: Made) -> None:
    web = client(app_of(review.atlas))
    assert web.get("/inspect").status_code == 404
    assert web.post("/api/v1/inspect", json={"prompt": PROMPT}).status_code in (404, 405)
    assert "/inspect" not in web.get("/").text


def test_answers_are_those_of_the_token_view(web: TestClient, review: Made) -> None:
    answer = web.post(
        "/api/v1/inspect", json={"prompt": PROMPT, "answer": ANSWER, "watch": [{"sae": "words", "latent": 3}]}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    suite = {"words": SparseAutoencoder.from_pretrained(review.saes["words"])}
    q = np.asarray([2.0 if i % 7 and i < D_SAE - 10 else np.nan for i in range(D_SAE)])
    expected = json.loads(inspect_text(load_model(review.language), suite, PROMPT, ANSWER, q={"words": q},
                                       watch=[("words", 3)]).model_dump_json())  # fmt: skip
    inspection = found["inspection"]
    assert inspection["tokens"] == expected["tokens"]
    assert inspection["watched"][0]["activations"] == expected["watched"][0]["activations"]
    assert any(f[2] is None for t in inspection["tokens"] for f in t["firings"])
    assert len(found["links"]) == len(inspection["features"]) > 20
    seen = set()
    for feature, link in zip(inspection["features"], found["links"], strict=True):
        i = feature["latent"]
        if i >= D_SAE - 10:
            assert link == {"url": None, "note": "Not explained yet", "sensitive": False, "colours": []}
            seen.add("absent")
            continue
        assert link["url"] == feature_path("words", i)
        assert web.get(link["url"]).status_code == 200
        if i % 4 == 0:
            assert (feature["label"], link["note"]) == (None, "Not explained yet")
            seen.add("not explained")
        else:
            assert feature["label"] == f"words harbour {i} {SCRIPT if i % 2 else BIDI}"
            assert link["sensitive"] == bool(feature["domains"]) == (i % 3 == 0 or i % 5 == 0)
            seen.add("explained")
    assert seen == {"absent", "not explained", "explained"}
    assert {row["domain"] for row in inspection["heat"]} == {"politics", "violence"} == set(found["colours"])


def test_the_model_writes(web: TestClient) -> None:
    asked = {"prompt": PROMPT, "generate": {"max_new_tokens": 6}}
    found = web.post("/api/v1/inspect", json=asked).json()["inspection"]
    assert 1 <= found["generated"]["tokens"] <= 6
    assert found["generated"]["how"]["max_seconds"] == inspecting.MAX_SECONDS
    assert [t for t in found["tokens"] if t["span"] == "response"]
    again = web.post("/api/v1/inspect", json=asked).json()["inspection"]
    assert again["tokens"] == found["tokens"]


def test_rewards_and_a_unit_from_the_scan(rewarding: TestClient, review: Made) -> None:
    """A read-only server reads texts too; where the atlas has no Q, the scan's is taken."""
    found = rewarding.post("/api/v1/inspect", json={"prompt": PROMPT, "answer": ANSWER}).json()["inspection"]
    q = review.open_scan().q("safer")
    assert found["saes"][0]["with_q"] == int(np.isfinite(q).sum()) > 0
    for token in found["tokens"]:
        for place, z, normalised in token["firings"]:
            unit = q[found["features"][place]["latent"]]
            assert normalised == (None if np.isnan(unit) else pytest.approx(z / unit, rel=1e-5))
    assert isinstance(found["reward"], float)
    assert 'checkbox" name="write"' not in rewarding.get("/inspect").text
    refused = rewarding.post("/api/v1/inspect", json={"prompt": PROMPT, "generate": {}})
    assert refused.status_code == 400
    assert "only language models generate" in refused.json()["error"]["what"]


@pytest.mark.parametrize(("asked", "status", "what"), [
    ({"prompt": " \n"}, 400, "the prompt is empty"),
    ({"prompt": "x" * 20_001}, 413, "the text is too long"),
    ({"prompt": "x" * 15_000, "answer": "y" * 10_000}, 413, "the text is too long"),
    ({"prompt": PROMPT, "answer": ANSWER, "generate": {}}, 400, "another one is to be generated"),
    ({"prompt": PROMPT, "answer": ANSWER, "chat": False}, 400, "neither answer nor roles"),
    ({"prompt": PROMPT, "generate": {"max_new_tokens": 513}}, 422, "less than or equal to 512"),
    ({"prompt": PROMPT, "generate": {"temperature": "hot"}}, 422, "valid number"),
    ({"prompt": PROMPT, "generate": {"max_seconds": 1e9}}, 422, "extra"),
    ({"prompt": PROMPT, "watch": [{"sae": "words", "latent": D_SAE}]}, 400, "no latent 96"),
    ({"prompt": PROMPT, "watch": [{"sae": SCRIPT, "latent": 0}]}, 400, "no autoencoder"),
    ({"prompt": 5}, 422, "valid string"),
    ({"text": PROMPT}, 422, "field required"),
    ([], 422, "valid dictionary"),
])  # fmt: skip
def test_what_cannot_be_read(web: TestClient, asked: Any, status: int, what: str) -> None:
    answer = web.post("/api/v1/inspect", json=asked)
    assert answer.status_code == status, answer.text
    assert what in answer.json()["error"]["what"]


def test_half_a_character_is_refused(web: TestClient) -> None:
    headers = HEADERS | {"Content-Type": "application/json"}
    answer = web.post("/api/v1/inspect", content=b'{"prompt": "half \\ud83d a pair"}', headers=headers)
    assert answer.status_code in (400, 422)


def test_hostile_texts_come_back_as_json_only(web: TestClient) -> None:
    hostile = f"{SCRIPT} {BIDI} \0 <|eot_id|>"
    answer = web.post("/api/v1/inspect", json={"prompt": hostile, "answer": hostile})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    tokens = answer.json()["inspection"]["tokens"]
    assert "".join(t["text"] for t in tokens if t["span"] == "response").strip() == hostile.strip()


def test_nothing_of_a_text_is_kept(web: TestClient, review: Made, caplog: pytest.LogCaptureFixture) -> None:
    before = review.atlas.read_bytes()
    with caplog.at_level(logging.DEBUG):
        web.post("/api/v1/inspect", json={"prompt": "a very private sentence", "answer": "another private one"})
        web.post("/api/v1/inspect", json={"prompt": "private" * 5000})
    assert "private" not in caplog.text
    assert review.atlas.read_bytes() == before


def test_other_sites_cannot_ask(web: TestClient) -> None:
    body = {"prompt": PROMPT}
    assert web.post("/api/v1/inspect", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    bare = TestClient(web.app, base_url=BASE, raise_server_exceptions=False)
    assert bare.post("/api/v1/inspect", json=body).status_code == 403


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event, list[int]]]:
    """A model pass that waits for a sign: (began, may go on, how many ran at once)."""
    began, go, running, most = threading.Event(), threading.Event(), [0], list[int]()
    real = inspecting.inspect_text

    def slow(*args: Any, **kwargs: Any) -> Any:
        running[0] += 1
        most.append(running[0])
        began.set()
        assert go.wait(30)
        try:
            return real(*args, **kwargs)
        finally:
            running[0] -= 1

    monkeypatch.setattr(inspecting, "inspect_text", slow)
    yield began, go, most
    go.set()


def test_one_text_at_a_time_and_a_short_queue(app: Any, held: Any) -> None:
    began, go, most = held
    answers: list[Any] = []

    def ask() -> None:
        answers.append(client(app).post("/api/v1/inspect", json={"prompt": PROMPT}))

    threads = [threading.Thread(target=ask) for _ in range(inspecting.WAITING + 4)]
    for thread in threads:
        thread.start()
    assert began.wait(30)
    while len(answers) < 3:  # those for whom there is no place are answered at once
        assert any(thread.is_alive() for thread in threads)
    turned_away = list(answers)
    assert all(a.status_code == 503 and a.headers["retry-after"] == inspecting.RETRY_AFTER for a in turned_away)
    assert "too many texts wait" in turned_away[0].json()["error"]["what"]
    go.set()
    for thread in threads:
        thread.join(60)
    codes = sorted(a.status_code for a in answers)
    assert codes == [200] * (inspecting.WAITING + 1) + [503] * 3
    assert max(most) == 1
    assert client(app).post("/api/v1/inspect", json={"prompt": PROMPT}).status_code == 200


def test_a_failed_turn_is_given_back() -> None:
    turns = Turns(waiting=0)
    for _ in range(3):
        with pytest.raises(ConfigError), turns.turn():
            raise ConfigError("wrong")


def test_one_that_waits_too_long_is_dropped() -> None:
    turns = Turns(waiting=1, patience=0.05)
    with turns.turn():
        for _ in range(3):  # each gives its place back
            with pytest.raises(BusyError, match="took too long"), turns.turn():
                pytest.fail("two at a time")
    with turns.turn():
        pass


def test_another_autoencoder_of_the_same_name_is_refused(review: Made) -> None:
    web = client(app_of(review.atlas, model=review.language, saes={"safer": str(review.saes["words"])}))
    answer = web.post("/api/v1/inspect", json={"prompt": PROMPT})
    assert answer.status_code == 400
    assert "another autoencoder called 'safer'" in answer.json()["error"]["what"]


def test_an_autoencoder_is_known_by_its_weights(review: Made) -> None:
    """Under another name than in the atlas, its features are found all the same."""
    web = client(app_of(review.atlas, model=review.language, saes={"renamed": str(review.saes["words"])}))
    found = web.post("/api/v1/inspect", json={"prompt": PROMPT}).json()
    urls = {link["url"] for link in found["links"] if link["url"]}
    assert urls
    assert all(url.startswith("/features/words/") for url in urls)
    with Atlas.open(review.atlas) as atlas:
        assert "renamed" not in {sae.id for sae in atlas.saes()}
