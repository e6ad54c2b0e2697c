"""`seamark serve` as a process: it says where it is, stops cleanly, and tells what is wrong in a line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from seamark.cli import main

SEAMARK = [sys.executable, "-m", "seamark", "serve"]


def test_it_serves_until_interrupted(atlas_file: Path) -> None:
    command = [*SEAMARK, str(atlas_file), "--port", "0", "--json", "--read-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["token"] is None
        with urllib.request.urlopen(told["url"], timeout=20) as answer:
            assert b"Seamark" in answer.read()
            assert answer.headers["server"] is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == ""
    assert err.split() == ["stopped"]


def test_other_addresses_get_a_token(atlas_file: Path) -> None:
    command = [*SEAMARK, str(atlas_file), "--port", "0", "--host", "0.0.0.0"]
    environment = {k: v for k, v in os.environ.items() if k != "SEAMARK_TOKEN"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[-1].replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address.partition("?")[0], timeout=20)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(address, timeout=20) as answer:
            assert "token" not in answer.url
        process.terminate()
        process.communicate(timeout=20)


def test_a_taken_port_is_told(atlas_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(atlas_file), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"seamark: --port: port {port} is taken. Give another, or 0 for a free one\n"


@pytest.mark.parametrize(("arguments", "words"), [
    (["none.db"], "there is no atlas here"), (["FILE", "--port", "70000"], "70000 is no port"),
    (["FILE", "--host", "no.such.host.invalid"], "is no address"), (["FILE", "--token", "short"], "fewer than 16"),
    (["FILE", "--runs", "none"], "there is no such folder"), (["FILE", "--model", "x"], "go together"),
    (["FILE", "--sae", "x"], "go together"),
])  # fmt: skip
def test_bad_options_are_told_in_a_line(
    atlas_file: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(atlas_file) if a == "FILE" else a for a in arguments]
    assert main(["serve", *options, *([] if "--port" in options else ["--port", "0"])]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_serving_without_a_model_does_not_wait_for_torch(atlas_file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from seamark.web.app import create_app; "
        "from seamark.web.state import ServeSettings; create_app(ServeSettings(atlas=Path(sys.argv[1]))); "
        "print([m for m in ('torch', 'transformers', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(atlas_file)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
