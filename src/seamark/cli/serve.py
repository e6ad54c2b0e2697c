"""`seamark serve`: the atlas as web pages, on this machine."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from seamark.cli.options import Common, Many, named_saes, parse_pairs
from seamark.errors import ConfigError, SeamarkError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from seamark.web.state import ServeSettings

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
Paths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
BACKLOG = 2048
KEEP_ALIVE, GRACE = 10, 3
"""Seconds that an idle connection is kept, and that open requests have when the server stops."""


def serve(
    common: Shared, atlas: Annotated[Path, tyro.conf.Positional], model: str | None = None, sae: Many = (),
    scan: Paths = (), pairs: Many = (), features: Paths = (), scores: Paths = (), runs: Path | None = None,
    host: str = "127.0.0.1", port: int = 8700, read_only: bool = False, token: str | None = None,
    allow_host: Many = (),
) -> None:  # fmt: skip
    """Show an atlas as web pages, until Ctrl-C. Nothing is loaded from the network.

    Only this machine reaches 127.0.0.1. At any other address clients have to show a token; without --token and without
    the variable SEAMARK_TOKEN one is made and printed.

    Args:
        common: options of every command.
        atlas: the file of `seamark atlas build` or `import`.
        model: a folder or a Hub name; with --sae, texts can be inspected.
        sae: an SAE's folder, or id=folder with its id in the atlas; repeat for a suite.
        scan: a scan's folder, whose pairs can be looked at and marked; repeat for more.
        pairs: the scans' pairs as group=file, which tell where pairs came from; a run's own are found by themselves.
        features: a feature set that speaks for and against pairs, besides those found by contrast; repeat for more.
        scores: pair scores to rank by; repeat for more.
        runs: the folder that run folders lie in.
        host: the address to serve at.
        port: the port; 0 takes one that is free.
        read_only: refuse every change to the atlas.
        token: what clients have to show, 16 characters or more.
        allow_host: a further name under which the server may be asked; repeat for more.
    """
    from seamark.web.app import create_app
    from seamark.web.hosts import needed_token
    from seamark.web.state import ServeSettings

    secret, made = needed_token(host, token)
    settings = ServeSettings(
        atlas=atlas, model=model, saes=named_saes(sae) if sae else {}, scans=scan, pairs=parse_pairs(pairs),
        features=features, scores=scores, runs=runs, host=host, port=port,
        read_only=read_only, token=secret, allow_hosts=allow_host,
    )  # fmt: skip
    with bound(host, port) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        app = create_app(settings)
        announce(settings, as_json=common.json, made=made)
        threading.Thread(target=_warm, args=(app,), daemon=True).start()
        run(app, listener)


def _warm(app: FastAPI) -> None:
    """Count what is in the atlas before somebody waits for it."""
    with suppress(SeamarkError):  # whoever asks is told
        app.state.seamark.overview()


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        ConfigError: the port is taken, or it is no address of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"{port} is no port", where="--port", fix="Give one from 1 to 65535, or 0 for a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"{host!r} is no address ({e})", where="--host", fix="Give 127.0.0.1") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is taken", where="--port", fix="Give another, or 0 for a free one"
            ) from None
        raise ConfigError(f"cannot serve at {host}:{port} ({e.strerror})", where="--host, --port",
                          fix="Give another address or port") from None  # fmt: skip
    return listener


def announce(settings: ServeSettings, *, as_json: bool, made: bool) -> None:
    """Print where the pages are, and a token that was made just now."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}/"
    shown = f"{url}?token={settings.token}" if made else url
    if as_json:
        sys.stdout.write(json.dumps({"url": url, "token": settings.token if made else None}) + "\n")
    else:
        read_only = ", read-only" if settings.read_only else ""
        sys.stdout.write(f"{settings.atlas.name}{read_only}: {shown}\nCtrl-C stops it.\n")
    sys.stdout.flush()


def server_of(app: FastAPI) -> uvicorn.Server:
    """The server of an application: one process, whose threads answer; it tells nobody what it is made of."""
    import uvicorn

    return uvicorn.Server(uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="off",
        timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=GRACE, backlog=BACKLOG,
    ))  # fmt: skip


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        server_of(app).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        sys.stderr.write("\nstopped\n")
