"""Choosing among several autoencoders in a folder or repository, and a Hub of our own on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_files import K, make

from seamark.errors import ConfigError, FormatError
from seamark.sae import formats


def several(root: Path) -> Path:
    """A sparsify run: three hookpoints, and the trainer's own files."""
    for name in ("layers.3", "layers.10", "layers.10.mlp"):
        formats.write(make(seed=len(name)), root / name, "sparsify")
    (root / "config.json").write_text('{"model": "EleutherAI/pythia-160m", "token": null}')
    torch.save({"step": 3}, root / "state.pt")
    torch.save({"state": {}}, root / "optimizer_0.pt")
    return root


def gemma(root: Path) -> Path:
    t = make("jumprelu").tensors
    for layer in (0, 20):
        for l0 in (71, 139):
            folder = root / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
            folder.mkdir(parents=True)
            np.savez(folder / "params.npz", **{n: x.numpy() for n, x in t.items()})
    return root


def test_several_are_listed_and_chosen(tmp_path: Path) -> None:
    root = several(tmp_path)
    with pytest.raises(FormatError, match=r"3 autoencoders here: layers\.10, layers\.10\.mlp, layers\.3.*hookpoint"):
        formats.read(root)
    for name in ("layers.3", "layers.10", "layers.10.mlp"):
        found = formats.read(root, hookpoint=name)
        assert found.config.hookpoint == name
        assert found.config.model == "EleutherAI/pythia-160m"
        torch.testing.assert_close(found.tensors["W_dec"], make(seed=len(name)).tensors["W_dec"])
    assert formats.read(root / "layers.3").config.hookpoint == "layers.3"
    with pytest.raises(FormatError, match="3 autoencoders here"):
        formats.read(root, hookpoint="layers.4")


def test_gemma_scope_is_narrowed_down(tmp_path: Path) -> None:
    root = gemma(tmp_path / "gemma-scope-2b-pt-res")
    with pytest.raises(FormatError, match="4 autoencoders here: layer_0/width_16k/average_l0_139, "):
        formats.read(root)
    with pytest.raises(FormatError, match=r"2 autoencoders here at layers\.20: layer_20/width_16k/average_l0_139, "):
        formats.read(root, hookpoint="layers.20")
    found = formats.read(root / "layer_20" / "width_16k", hookpoint="average_l0_71")
    assert found.config.hookpoint == "layers.20"
    assert formats.read(root, hookpoint="layer_0/width_16k/average_l0_71").config.hookpoint == "layers.0"
    assert formats.detect(root / "layer_0/width_16k/average_l0_71/params.npz") == "gemma-scope"


def test_lone_files_by_layer(tmp_path: Path) -> None:
    t = make("relu").tensors
    state = {"pre_encoder_bias._bias_reference": t["b_dec"], "encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"],
             "decoder.weight": t["W_dec"].T}  # fmt: skip
    for layer in (0, 17):
        torch.save({n: x[None] for n, x in state.items()}, tmp_path / f"ckpt_layer{layer}.pt")
    with pytest.raises(FormatError, match=r"2 autoencoders here: ckpt_layer0\.pt, ckpt_layer17\.pt"):
        formats.read(tmp_path, k=K)
    assert formats.read(tmp_path, k=K, hookpoint="layers.17.mlp").config.hookpoint == "layers.17.mlp"
    with pytest.raises(FormatError, match=r"of layers\.17\.mlp, not of layers\.17$"):
        formats.read(tmp_path, k=K, hookpoint="layers.17")


def test_a_file_of_an_autoencoder_stands_for_it(tmp_path: Path) -> None:
    formats.write(make(), tmp_path, "saelens")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert formats.read(tmp_path / name).format == "saelens"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FormatError, match="this file is no autoencoder"):
        formats.read(tmp_path / "notes.txt")


def test_unfinished_and_hidden_folders_do_not_count(tmp_path: Path) -> None:
    for name in ("done", "step-000200.partial", ".cache"):
        formats.write(make(hookpoint="layers.1"), tmp_path / name)
    assert formats.read(tmp_path).config.hookpoint == "layers.1"


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "~/nothing-here", "a", "a/b/../c", "C:\\x\\y"])
def test_no_such_folder(path: str) -> None:
    with pytest.raises(FormatError, match=r"no such folder or file.*owner/name"):
        formats.read(path)


def test_no_name_at_all() -> None:
    with pytest.raises(FormatError, match="no folder, file or repository is named"):
        formats.read("")


def test_a_path_is_never_a_name_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such folder or file"):
        formats.read(Path("owner/name"))


def test_offline_and_not_here(tmp_path: Path) -> None:  # tests run with HF_HUB_OFFLINE=1
    with pytest.raises(FormatError, match=r"owner/name: neither here nor to be fetched.*HF_HUB_OFFLINE"):
        formats.read("owner/name")


# ---- A Hub on this machine

SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub for reading and for uploading small files."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/gated/"):
            return self.say(403, {"error": "ask"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access"})
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            if not (self.root / repo).is_dir():
                return self.say(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
            if "/revision/" in path and not path.endswith(("/main", SHA)):
                return self.say(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
            names = [p.relative_to(self.root / repo).as_posix() for p in (self.root / repo).rglob("*") if p.is_file()]
            return self.say(200, {"id": repo, "sha": SHA, "siblings": [{"rfilename": n} for n in names]})
        repo, _, name = path.removeprefix("/").partition("/resolve/")
        file = self.root / repo / name.partition("/")[2]
        if not file.is_file():
            return self.say(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        tag = hashlib.sha1(content).hexdigest()
        self.say(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": SHA})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            (self.root / repo).mkdir(parents=True, exist_ok=True)
            return self.say(200, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.say(200, {"files": files})
        repo = "/".join(path.split("/")[3:5])
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                (self.root / repo / item["value"]["path"]).write_bytes(base64.b64decode(item["value"]["content"]))
        self.say(200, {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{SHA}", "commitOid": SHA})

    def say(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OurHub", (Hub,), {"root": tmp_path / "hub", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


READ = """
import json, sys
from seamark.errors import SeamarkError
from seamark.sae import formats
for address, options in json.load(sys.stdin):
    try:
        found = formats.read(address, **options)
        print(json.dumps([found.format, found.config.hookpoint, found.config.model, found.tensors["b_enc"][0].item()]))
    except SeamarkError as e:
        print(json.dumps(str(e)))
"""
PUSH = """
from format_files import make
from seamark.sae import formats
print(formats.push(make(hookpoint="layers.1"), "me/new", token="t"))
"""


def run(endpoint: str, home: Path, code: str, given: object = None, offline: bool = False) -> list[Any]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline)), "HF_HOME": str(home),
           "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_ETAG_TIMEOUT": "5",
           "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
           "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(given), capture_output=True, text=True,
                          env=env, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_reading_from_the_hub(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    several(handler.root / "EleutherAI" / "sae-x")
    gemma(handler.root / "google" / "gemma-scope-2b-pt-res")
    one = ["EleutherAI/sae-x", {"hookpoint": "layers.3"}]
    lines = run(endpoint, tmp_path / "home", READ, [
        one,
        ["EleutherAI/sae-x", {}],
        ["EleutherAI/sae-x/layers.10.mlp", {"revision": "main"}],
        [f"hf://EleutherAI/sae-x@{SHA}/layers.10", {}],
        ["google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", {}],
        ["google/gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_71/params.npz", {}],
        ["EleutherAI/sae-x", {"revision": "v9"}],
        ["EleutherAI/sae-x/nothing", {}],
        ["gated/sae", {}],
        ["nobody/nothing", {}],
        ["a b/c", {}],
        one,
    ])  # fmt: skip
    found = [json.loads(line) for line in lines]
    bias = make(seed=len("layers.3")).tensors["b_enc"][0].item()
    assert found[0] == ["sparsify", "layers.3", "EleutherAI/pythia-160m", pytest.approx(bias)]
    assert "3 autoencoders here: layers.10, layers.10.mlp, layers.3" in found[1]
    assert found[2][:3] == ["sparsify", "layers.10.mlp", "EleutherAI/pythia-160m"]
    assert found[3][1] == "layers.10"
    assert found[4][:3] == ["gemma-scope", "layers.20", "google/gemma-2-2b"]
    assert found[5][1] == "layers.0"
    assert "no such revision" in found[6]
    assert "no autoencoder here" in found[7]
    assert "must be asked for" in found[8]
    assert "no such repository on the Hub" in found[9]
    assert "no such folder or file" in found[10]
    fetched = [a for a in handler.asked if a.startswith("GET /") and "/resolve/" in a]
    assert not any(name in a for a in fetched for name in ("optimizer_0.pt", "state.pt", "average_l0_139"))

    # A second time nothing is fetched, and nothing asked when offline.
    assert found[11] == found[0]
    assert len([a for a in fetched if a.endswith("/layers.3/sae.safetensors")]) == 1
    handler.asked.clear()
    assert run(endpoint, tmp_path / "home", READ, [one], offline=True) == lines[:1]
    assert handler.asked == []
    nowhere = "http://127.0.0.1:9"
    [here, lost] = run(nowhere, tmp_path / "home", READ, [one, ["nobody/nothing", {}]])
    assert here == lines[0]
    assert "the Hub cannot be reached" in lost


def test_pushing_to_the_hub(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    [url] = run(endpoint, tmp_path / "home", PUSH)
    assert url == f"{endpoint}/me/new"
    back = formats.read(handler.root / "me" / "new")
    assert back.config == make(hookpoint="layers.1").config
    torch.testing.assert_close(back.tensors["W_enc"], make().tensors["W_enc"])
    with pytest.raises((FormatError, ConfigError), match=r"not a name on the Hub|neither here"):
        formats.push(make(), "not a name")
