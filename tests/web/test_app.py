"""Every page and operation on a small atlas: what they show, how they link, what they say when there is nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from made_atlas import BASE, SAES, N, app_of, client_of
from made_review import Made
from starlette.testclient import TestClient

from seamark.atlas.records import Sae
from seamark.atlas.safe_sail import import_safe_sail
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, FormatError
from seamark.web.api import MAX_IDS
from seamark.web.app import create_app
from seamark.web.queries import FeatureQuery, invalid, page_path, query_string, read
from seamark.web.state import ServeSettings, State, feature_path

DATA = Path(os.environ.get("SEAMARK_DATA", "/nowhere"), "safe_sail")
PAGES = ("/", "/features", "/landscape", "/api", feature_path(SAES[0], 0), feature_path(SAES[1], 3))
FIRST = feature_path(SAES[0], 0)


def text_of(page: str) -> str:
    """What a page says, without its markup."""
    return " ".join(unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.S)).split())


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_and_names_itself(web: TestClient, path: str) -> None:
    found = web.get(path)
    assert found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert re.search(r"<title>[^<]+ · Seamark</title>", found.text)
    assert found.text.count("<h1") == 1
    assert ' style="' not in found.text  # the policy forbids it
    assert "<script>" not in found.text


@pytest.mark.parametrize("path", PAGES)
def test_links_and_files_of_a_page_lead_somewhere(web: TestClient, path: str) -> None:
    page = web.get(path).text
    for link in set(re.findall(r'(?:href|src)="(/[^"]*)"', page)):
        assert web.get(unescape(link)).status_code == 200, link
    assert not re.findall(r'(?:href|src)="(?!/|#)[^"]+', page), "something of another server"


def test_the_overview_counts_what_the_atlas_holds(web: TestClient, atlas_file: Path) -> None:
    with Atlas.open(atlas_file) as atlas:
        about = atlas.overview()
    page = text_of(web.get("/").text)
    assert f"{about.features} features of 3 autoencoders on demo/model." in page
    for count in about.domains:
        assert f"{count.name} " in page
        query = FeatureQuery(domain=count.name)
        assert f'href="{page_path("/features", query)}"' in web.get("/").text
        assert web.get("/api/v1/features", params={"domain": count.name}).json()["total"] == count.count
    assert "zh" in page
    assert "Scan of the demo pairs" in page
    assert 'role="img" aria-label="Correlation of simulated' in web.get("/").text


@pytest.mark.skipif(not DATA.is_dir(), reason="SEAMARK_DATA names no folder with safe_sail/")
def test_the_overview_of_safe_sail_shows_its_figures(tmp_path: Path) -> None:
    with AtlasWriter.open(tmp_path / "sail.db", create=True) as writer:
        import_safe_sail(writer, DATA / "en_db.json.gz", DATA / "cn_db.json.gz")
    web = TestClient(app_of(tmp_path / "sail.db"), base_url=BASE)
    page = text_of(web.get("/").text)
    english = "en politics 1,144, violence 582, pornography 309, terror 63 4,700 1,758 1,144 13"
    assert english in page
    assert "4,701 features of 5 autoencoders on Qwen/Qwen2.5-3B-Instruct." in page
    for domain, count in (("violence", 582), ("pornography", 309), ("terror", 63)):
        found = web.get("/api/v1/features", params={"language": "en", "domain": domain}).json()
        assert found["total"] == count
        assert f"{domain} {count}" in page


def test_an_empty_atlas_says_so(tmp_path: Path) -> None:
    AtlasWriter.open(tmp_path / "empty.db", create=True).close()
    web = TestClient(app_of(tmp_path / "empty.db"), base_url=BASE)
    assert "This atlas is empty" in text_of(web.get("/").text)
    assert "No feature fits" in text_of(web.get("/features").text)
    assert "no landscape yet" in text_of(web.get("/landscape").text)
    assert web.get("/api/v1/features").json()["total"] == 0


def test_cards_show_what_is_known(web: TestClient) -> None:
    page = web.get("/features", params={"sae": SAES[0], "sort": "id", "descending": "false", "limit": 40}).text
    cards = page.split("<template")[0].split('<article class="card"')[1:]
    assert len(cards) == N
    assert "mentions of harbour lights, kind 0" in text_of(cards[0])
    assert "politics" in text_of(cards[0])
    assert "▲ preferred answers" in text_of(cards[0])
    assert "▼ rejected answers" in text_of(cards[1])
    assert "Not explained yet" in text_of(cards[6])
    assert "Masked where it came from" in text_of(cards[7])
    assert "No explanation was found" in text_of(cards[8])
    assert cards[0].count("<rect") > 10
    assert 'class="t for l' in cards[0]
    assert "sensitive" in cards[0]  # tagged
    assert "sensitive" in cards[6]  # nobody has looked at it
    assert "sensitive" not in cards[15].replace("data-reveal", "")  # neither tagged nor rated as about safety


def test_pages_of_a_list_are_linked_and_cover_it(web: TestClient) -> None:
    seen: list[str] = []
    path = "/features?words=harbour&sort=id&descending=false"
    while path:
        page = web.get(path).text.split("<template")[0]
        seen += re.findall(r'<a href="(/features/[^"]+)" data-slot="link"', page)
        after = re.search(r'id="next" rel="next" href="([^"]+)"', page)
        path = unescape(after[1]) if after else ""
    total = web.get("/api/v1/features", params={"words": "harbour"}).json()["total"]
    assert len(seen) == len(set(seen)) == total > 48


def test_a_feature_page_holds_all_of_it(web: TestClient) -> None:
    page = text_of(web.get(FIRST).text)
    for words in ("mentions of harbour lights, kind 0", "港口的灯光 第0号", "prompt v1", "940 tokens, 0.0012 USD",
                  "not available no clear cases", "Strongest", "Level 10", "Near misses", "Silent", "contrast:safety",
                  "speaks for preferred answers", "0.310 0.200 to 0.400", "the model has no reward head",
                  "human:ann", "undecided", "0.90", "layers.0.mlp"):  # fmt: skip
        assert words in page, words
    odd = text_of(web.get(feature_path(SAES[0], 1)).text)
    assert "harbour" in odd
    assert "storm" in odd
    assert "fewer than 10 positions" in text_of(web.get(feature_path(SAES[0], 6)).text)


@pytest.mark.parametrize("sae", SAES)
def test_features_keep_their_address_whatever_their_id(web: TestClient, sae: str) -> None:
    path = feature_path(sae, 2)
    assert urlsplit(path).path == path  # no query, no fragment
    assert path.count("/") == 3
    assert web.get(path).status_code == 200
    assert web.get(f"/api/v1{path}").json()["card"]["sae"] == sae
    contexts = web.get(f"/api/v1{path}/contexts", params={"kind": "level"}).json()
    assert [c["level"] for c in contexts] == [10, 5, 1]


def test_escapes_within_an_id_are_not_read_twice(tmp_path: Path) -> None:
    name = "a%2Fb%25?x=1#y"
    with AtlasWriter.open(tmp_path / "odd.db", create=True) as writer:
        sae = Sae(number=0, id=name, model="m", hookpoint="layers.0", layer=0)
        writer.add_features(writer.add_sae(sae), [{"latent": 3}])
    app = app_of(tmp_path / "odd.db")

    async def ask() -> tuple[int, str]:
        async with client_of(app)() as web:
            answer = await web.get(f"/api/v1{feature_path(name, 3)}")
            return answer.status_code, answer.json()["card"]["sae"]

    assert asyncio.run(ask()) == (200, name)


def test_programs_may_ask_for_headers_alone(web: TestClient) -> None:
    asked, whole = web.head("/features"), web.get("/features")
    assert asked.status_code == 200
    assert asked.content == b""
    assert asked.headers["content-type"] == whole.headers["content-type"]


def test_slashes_of_an_id_may_stay_unescaped(web: TestClient) -> None:
    assert web.get(f"/features/{quote(SAES[1], safe='/')}/2").status_code == 200


@pytest.mark.parametrize("path", [
    "/nothing", "/features/", "/features/none/0", "/features/layers.0.mlp/511", "/features/layers.0.mlp/-1",
    "/features/layers.0.mlp/x", f"/features/layers.0.mlp/{'9' * 5000}", "/features/layers.0.mlp/99999999999999999999",
    "/landscape?layout=none", "/static/none.css", "/static/../app.py", "/static/%2e%2e/app.py", "/inspect", "/pairs",
    "/api/v1/none", "/api/v1/features/none/0", "/api/v1/features/none/0/contexts", "/api/v1/landscape/none",
])  # fmt: skip
def test_what_is_not_there_is_a_404(web: TestClient, path: str) -> None:
    found = web.get(path)
    assert found.status_code == 404
    if path.startswith("/api/"):
        assert found.json()["error"]["what"]
    else:
        assert "404 Not Found" in text_of(found.text)
        assert "Back to the overview" in text_of(found.text)


@pytest.mark.parametrize(("path", "place"), [
    ("/features?layer=x", "layer"), ("/features?min_score=nan", "min_score"), ("/features?sort=none", "sort"),
    ("/features?offset=-1", "offset"), ("/features?layer=99999999999999999999", "layer"),
    ("/features?words=" + "x" * 501, "words"), ("/landscape?min_score=inf", "min_score"),
    ("/api/v1/features?limit=0", "limit"), ("/api/v1/features?none=1", "none"), ("/api/v1/features?sign=2", "sign"),
    ("/api/v1/cards?ids=1;2", "ids"), ("/api/v1/cards", "ids"), ("/api/v1/features/a/x", "latent"),
    ("/api/v1/features/a/99999999999999999999", "latent"),
    ("/api/v1/cards?ids=" + ",".join("1" * (MAX_IDS + 1)), "ids"),
])  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(web: TestClient, path: str, place: str) -> None:
    found = web.get(path)
    assert found.status_code == 422
    told = found.json()["error"]["where"] if path.startswith("/api/") else text_of(found.text)
    assert place in told


def test_queries_have_one_address() -> None:
    given = [("words", "a b"), ("layer", "3"), ("sign", "-1"), ("descending", "false"), ("domain", ""), ("other", "1"),
             ("sort", "score")]  # fmt: skip
    query = read(FeatureQuery, given)
    assert query.sign == -1
    assert query_string(query) == "words=a+b&layer=3&sign=-1&descending=false"
    assert read(FeatureQuery, [tuple(p.split("=")) for p in query_string(query).replace("+", " ").split("&")]) == query
    assert page_path("/features", FeatureQuery()) == "/features"


def test_the_api_gives_what_the_atlas_gives(web: TestClient, atlas_file: Path) -> None:
    with Atlas.open(atlas_file) as atlas:

        def plain(value: Any) -> Any:
            return json.loads(value.model_dump_json())

        assert web.get("/api/v1/overview").json() == plain(atlas.overview())
        assert web.get("/api/v1/saes").json() == [plain(s) for s in atlas.saes()]
        assert web.get("/api/v1/runs").json() == [plain(r) for r in atlas.runs()]
        assert web.get("/api/v1/layouts").json() == list(atlas.layouts())
        assert web.get(f"/api/v1{FIRST}").json() == plain(atlas.feature(SAES[0], 0))
        found = web.get("/api/v1/features", params={"words": "港口", "limit": 5}).json()
        same = atlas.find(FeatureQuery(words="港口", limit=5))
        assert [c["id"] for c in found["cards"]] == [c.id for c in same.cards]
        assert found["total"] == same.total == 21
        assert found["previous"] is None
        assert found["next"] == "words=%E6%B8%AF%E5%8F%A3&offset=5&limit=5"
        assert found["previews"] == []


def test_previews_come_with_the_cards(web: TestClient) -> None:
    found = web.get("/api/v1/features", params={"sae": SAES[0], "sort": "id", "descending": False, "previews": True})
    first, *_ = found.json()["previews"]
    assert first["url"] == FIRST
    assert first["sensitive"] is True
    assert "".join(p["text"] for p in first["pieces"]) == "The old harbour light shows ships the way home."
    assert max(p["shade"] for p in first["pieces"]) == 4  # 0.8 of Q = 2
    assert 0 < len(first["bars"]) <= 24
    assert max(first["bars"]) == 1.0
    ids = [c["id"] for c in found.json()["cards"]][:3]
    cards = web.get("/api/v1/cards", params={"ids": f"{ids[2]},{ids[0]},999999"}).json()
    assert [c["id"] for c in cards["cards"]] == [p["id"] for p in cards["previews"]] == [ids[2], ids[0]]


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and columns, as what they stand for: read by the description in `packing`, not by its code."""
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    columns, at = {}, 4 + length
    for about in header["arrays"]:
        kind = np.dtype(about["type"]).newbyteorder("<")
        stored = np.frombuffer(content, kind, header["n"], at)
        columns[about["name"]] = stored if about["step"] is None else about["start"] + about["step"] * stored
        columns[f"{about['name']} stored"] = stored
        at += -(-stored.nbytes // 4) * 4
    assert at == len(content)
    return header, columns


def test_the_landscape_is_packed_and_kept(web: TestClient, atlas_file: Path) -> None:
    answer = web.get("/api/v1/landscape/decoder")
    header, columns = unpack(answer.content)
    with Atlas.open(atlas_file) as atlas:
        points = atlas.points("decoder")
    assert header["n"] == len(points.ids) == 3 * N
    np.testing.assert_array_equal(columns["id"], points.ids)
    np.testing.assert_allclose(columns["x"], points.x, atol=1e-4)
    np.testing.assert_allclose(columns["y"], points.y, atol=1e-4)
    np.testing.assert_array_equal([header["domains"][d]["name"] if d >= 0 else "" for d in columns["domain"]],
                                  [points.domains[d] if d >= 0 else "" for d in points.domain])  # fmt: skip
    assert [s["id"] for s in header["saes"]] == list(points.saes)
    missing = columns["score stored"] == header["missing_score"]
    np.testing.assert_array_equal(missing, np.isnan(points.score))
    np.testing.assert_allclose(columns["score"][~missing], points.score[~missing], atol=1e-4)
    again = web.get("/api/v1/landscape/decoder", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert web.get("/api/v1/landscape/decoder", headers={"If-None-Match": '"x"'}).status_code == 200


def test_the_landscape_stays_small() -> None:
    from seamark.web import packing

    rng = np.random.default_rng(0)
    n = 100_000
    content = packing.pack({"n": n}, [
        packing.numbers("id", np.arange(n) + 1), packing.coordinates("x", rng.normal(size=n).astype(np.float32)),
        packing.coordinates("y", rng.normal(size=n).astype(np.float32)), packing.numbers("sae", np.zeros(n, np.int32)),
        packing.numbers("domain", np.full(n, -1)), packing.scores("score", np.full(n, np.nan, np.float32)),
    ])  # fmt: skip
    assert len(content) <= 1_500_000
    _, columns = unpack(content)
    assert columns["id"].tolist() == list(range(1, n + 1))
    assert (columns["score stored"] == packing.FULL).all()
    big, stored = packing.numbers("id", np.array([2**40]))
    assert big["type"] == "float64"
    assert stored[0] == 2**40
    flat, same = packing.coordinates("x", np.array([2.5, 2.5, np.inf], np.float32))
    assert flat["start"] + flat["step"] * same[0] == pytest.approx(2.5, abs=1e-4)


def test_a_change_of_the_atlas_shows_at_once(tmp_path: Path, atlas_file: Path) -> None:
    import shutil

    path = tmp_path / "copy.db"
    shutil.copy(atlas_file, path)
    web = TestClient(app_of(path), base_url=BASE)
    before = web.get("/api/v1/landscape/decoder").headers["etag"]
    assert "90 features" in text_of(web.get("/").text)
    with AtlasWriter.open(path) as writer:
        number = writer.saes()[0].number
        (new,) = writer.add_features(number, [{"latent": 100}]).values()
        writer.set_layout("decoder", {}, [new], [0.0], [0.0])
    assert "91 features" in text_of(web.get("/").text)
    assert web.get("/api/v1/landscape/decoder").headers["etag"] != before
    assert web.get(feature_path(SAES[0], 100)).status_code == 200


def test_settings_are_read_from_cookies(web: TestClient) -> None:
    assert '<html lang="en" data-theme="auto">' in web.get("/").text
    web.cookies.set("seamark_theme", "dark")
    web.cookies.set("seamark_reveal", "1")
    assert '<html lang="en" data-theme="dark" data-reveal>' in web.get("/").text
    web.cookies.set("seamark_theme", '"><script>')
    assert 'data-theme="auto"' in web.get("/").text


def test_files_are_kept_by_their_digest(web: TestClient) -> None:
    path = re.search(r'href="(/static/atlas\.css\?v=[^"]+)"', web.get("/").text)[1]
    kept = web.get(path)
    assert "immutable" in kept.headers["cache-control"]
    plain = web.get("/static/atlas.css")
    assert plain.headers["cache-control"] == "no-cache"
    assert web.get("/static/atlas.css", headers={"If-None-Match": plain.headers["etag"]}).status_code == 304
    assert web.get("/static/lib.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_only_pages_that_are_there_are_in_the_navigation(web: TestClient, app: Any) -> None:
    page = web.get("/").text
    assert re.findall(r'<li><a href="([^"]+)"', page)[:3] == ["/", "/features", "/landscape"]
    assert "/inspect" not in page
    state: State = app.state.seamark
    assert not state.can_inspect
    assert web.get(FIRST).text.count('aria-current="page"') == 1


def test_the_schema_describes_the_api(web: TestClient) -> None:
    schema = web.get("/api/v1/openapi.json").json()
    assert set(schema["paths"]) >= {
        "/api/v1/overview",
        "/api/v1/features",
        "/api/v1/cards",
        "/api/v1/landscape/{layout}",
    }
    named = {p["name"] for p in schema["paths"]["/api/v1/features"]["get"]["parameters"]}
    assert named == {*FeatureQuery.model_fields, "previews"}
    page = text_of(web.get("/api").text)
    assert all(path in page for path in schema["paths"])
    assert "min_rating" in page


def undescribed(schema: dict[str, Any]) -> list[str]:
    """Parameters, and fields of what is sent, that the schema says nothing of."""
    wrong = [f"{path} {about['name']}" for path, methods in schema["paths"].items() for operation in methods.values()
             for about in operation.get("parameters", ()) if not (about.get("description") or "").strip()]  # fmt: skip
    for name in ("InspectRequest", "Writing", "Watched", "MarkRequest", "Wrong"):
        fields = schema["components"]["schemas"].get(name, {}).get("properties", {})
        wrong += [f"{name}.{field}" for field, about in fields.items()
                  if not about.get("description") and field not in ("generate", "mark", "chat")]  # fmt: skip
    return wrong


def test_the_schema_says_what_parameters_mean(web: TestClient, review: Made) -> None:
    schema = web.get("/api/v1/openapi.json").json()
    assert undescribed(schema) == []
    card = schema["components"]["schemas"]["Card"]["properties"]
    assert "permanent names" in card["id"]["description"]
    full = create_app(ServeSettings(
        atlas=review.atlas, model=review.language, saes={"words": str(review.saes["words"])}, scans=(review.scan,),
        runs=review.runs))  # fmt: skip
    whole = full.openapi()
    assert {"/api/v1/inspect", "/api/v1/marks", "/api/v1/run-comparison"} <= set(whole["paths"])
    assert undescribed(whole) == []


def test_long_labels_are_cut_with_a_sign(web: TestClient) -> None:
    page = web.get("/features?words=lighthouse").text
    label = re.search(r'data-slot="label"[^>]*>(lighthouse [^<]*)<', page)
    assert label is not None
    assert label[1].endswith("…")
    assert len(label[1]) == 401


def test_errors_keep_their_capitals() -> None:
    assert invalid([{"msg": "JSON decode error"}]).what == "JSON decode error"
    assert invalid([{"msg": "Field required"}]).what == "field required"


def test_a_server_without_a_landscape_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "bare & new.db"
    AtlasWriter.open(path, create=True).close()
    page = TestClient(app_of(path), base_url=BASE).get("/landscape").text
    assert "seamark atlas landscape bare &amp; new.db" in page


def test_bad_settings_are_told(tmp_path: Path, atlas_file: Path) -> None:
    with pytest.raises(ConfigError, match="no atlas"):
        app_of(tmp_path / "none.db")
    (tmp_path / "x.db").write_text("no database")
    with pytest.raises(FormatError, match="atlas"):
        app_of(tmp_path / "x.db")
    with pytest.raises(ConfigError, match="go together"):
        app_of(atlas_file, model="somewhere")
    with pytest.raises(ConfigError, match="no such folder"):
        app_of(atlas_file, runs=tmp_path / "none")
    with pytest.raises(ConfigError, match="no token"):
        app_of(atlas_file, host="0.0.0.0")
