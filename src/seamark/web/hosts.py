"""Who may ask, and under which name: addresses, Host headers, tokens. No web framework is needed to decide it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from seamark.errors import ConfigError

TOKEN_VARIABLE = "SEAMARK_TOKEN"  # noqa: S105 - the name of a variable
MIN_TOKEN = 16
"""Characters of a token."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at that address."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def needed_token(host: str, given: str | None, environment: Mapping[str, str] = os.environ) -> tuple[str | None, bool]:
    """The token clients have to show, and whether it was made just now.

    None only where no other machine reaches the server and nobody asked for a token.

    Raises:
        ConfigError: it could be guessed.
    """
    token = given or environment.get(TOKEN_VARIABLE) or None
    if token is None:
        return (None, False) if is_loopback(host) else (secrets.token_urlsafe(24), True)
    if len(token) < MIN_TOKEN:
        raise ConfigError(f"the token has {len(token)} characters, fewer than {MIN_TOKEN}",
                            where=f"--token, {TOKEN_VARIABLE}", fix="Leave it out, and one is made")  # fmt: skip
    return token, False


def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case and without the port; None: it is none."""
    try:
        parts = urlsplit(f"//{header}")
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return None
    if parts.netloc != header or not port_is_fine or parts.username is not None:
        return None
    return parts.hostname


def host_allowed(header: str, host: str, further: tuple[str, ...] = ()) -> bool:
    """Whether a server bound to `host` may be asked under the name in a Host header.

    A page that makes its own name point here (DNS rebinding) is asked for under that name, so names are compared. Ports
    are not: they may be forwarded. A server bound to all addresses also takes any address, since an address is no name.
    """
    name = host_name(header)
    if not name:
        return False
    if is_loopback(name) or name in (host.lower(), *(f.lower() for f in further)):
        return True
    bound = _address(host)
    everywhere = bound is not None and bound.is_unspecified
    return everywhere and (_address(name) is not None or name == socket.gethostname().lower())


def same_token(given: str | None, token: str) -> bool:
    """Compare in constant time."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def session_of(token: str) -> str:
    """What the cookie of a client holds that has shown the token: derived from it, and not the token."""
    return hmac.new(token.encode(), b"seamark session", hashlib.sha256).hexdigest()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
