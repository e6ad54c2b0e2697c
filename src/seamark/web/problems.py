"""What can be wrong with a request. Each kind has its status; any other `SeamarkError` is a 400."""

from __future__ import annotations

from seamark.errors import SeamarkError


class RequestError(SeamarkError):
    """A request that cannot be answered."""

    status = 400


class NotFoundError(RequestError):
    """There is no such page, feature, pair or run."""

    status = 404


class RefusedError(RequestError):
    """Not allowed here: another site's request, a write where nothing may be written, a wrong name of the host."""

    status = 403


class TokenNeededError(RequestError):
    """The server asks for a token, and this is not it."""

    status = 401


class MethodError(RequestError):
    """There is no such way to ask for this page."""

    status = 405


class TooLongError(RequestError):
    """A body or a prompt beyond the limit."""

    status = 413


class MediaError(RequestError):
    """A body that is not JSON."""

    status = 415


class InvalidError(RequestError):
    """A parameter or a body that does not fit what is asked for."""

    status = 422


class TimedOutError(RequestError):
    """The answer took too long."""

    status = 503


BY_STATUS: dict[int, type[RequestError]] = {kind.status: kind for kind in (
    RequestError, NotFoundError, RefusedError, TokenNeededError, MethodError, TooLongError, MediaError, InvalidError,
    TimedOutError)}  # fmt: skip


def status_of(error: SeamarkError) -> int:
    """The status of an answer that tells of `error`."""
    return error.status if isinstance(error, RequestError) else 400
