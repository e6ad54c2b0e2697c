"""Price tables: what a model's tokens cost, from rules that a user can edit.

Money is counted in whole billionths ("nanos") of the table's currency, rounded up: sums are exact, and a budget that
is compared with them holds to the last digit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seamark.errors import ConfigError

NANO = 1_000_000_000


class Price(BaseModel):
    """A rule: which model on which server costs how much, in money per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Pattern of the model's name (`*`, `?`)."""
    server: str = "*"
    """Pattern of the server's address, such as `https://api.example.com/v1/`."""
    input: Decimal = Field(ge=0, allow_inf_nan=False)
    """Money per million tokens sent."""
    output: Decimal = Field(ge=0, allow_inf_nan=False)
    """Money per million tokens received, thoughts included."""
    cached_input: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Money per million tokens sent that the server had in its own prompt cache; None: as `input`."""

    def nanos(self, tokens_in: int, tokens_out: int, tokens_in_cached: int = 0) -> int:
        """Cost in billionths of the currency, rounded up. `tokens_in_cached` are part of `tokens_in`."""
        cheap = self.input if self.cached_input is None else self.cached_input
        known = min(tokens_in_cached, tokens_in)
        money = (tokens_in - known) * self.input + known * cheap + tokens_out * self.output
        return int((money * (NANO // 1_000_000)).to_integral_value(ROUND_CEILING))

    def worst_nanos(self, tokens_in: int, tokens_out: int) -> int:
        """The most that these tokens can cost, should a cached token cost more than another."""
        return max(self.nanos(tokens_in, tokens_out), self.nanos(tokens_in, tokens_out, tokens_in))


class PriceTable(BaseModel):
    """Rules in order; the first one that fits a model and its server counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = Field(default="USD", min_length=1, max_length=8)
    prices: tuple[Price, ...] = ()

    def price(self, model: str, server: str = "") -> Price | None:
        """The price of a model's tokens on a server; None: not known (which is not free)."""
        fits = (p for p in self.prices if fnmatchcase(model, p.model) and fnmatchcase(server, p.server))
        return next(fits, None)

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        """The packaged table, behind a user's own rules where `path` names a file of them.

        Raises:
            ConfigError: the file is missing, is no YAML, or is no price table. Rules of the packaged table are left
                out where the user's currency is another, unless they say 0.
        """
        packaged = _packaged()
        if path is None:
            return packaged
        own = _parse(_read(path), str(path))
        free = tuple(p for p in packaged.prices if own.currency == packaged.currency or not (p.input or p.output))
        return cls(currency=own.currency, prices=own.prices + free)


@functools.cache
def _packaged() -> PriceTable:
    return _parse((resources.files("seamark.explain") / "prices.yaml").read_text(encoding="utf-8"), "prices.yaml")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("price table not found", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"the price table cannot be read ({e})", where=str(path)) from e


def _parse(text: str, where: str) -> PriceTable:
    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"the price table is no YAML ({e})", where=where) from e
    if not isinstance(data, Mapping):
        raise ConfigError("a price table has the keys currency and prices", where=where)
    try:
        return PriceTable.model_validate(_decimals(data))
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place}: {first['msg']}", where=where, fix="See the comments of the packaged prices.yaml"
                          ) from None  # fmt: skip


def _decimals(value: Any) -> Any:
    """YAML's floats as the decimals that were written: 0.1 is a tenth."""
    if isinstance(value, float):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _decimals(v) for k, v in value.items()}
    return [_decimals(v) for v in value] if isinstance(value, list) else value
