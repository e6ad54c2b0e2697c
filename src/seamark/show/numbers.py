"""How numbers are written for people: true minus signs, thin spaces, percent only here (files hold fractions)."""

from __future__ import annotations

from math import isfinite

from seamark.stats import Estimate

NOT_AVAILABLE = "not available"
_THIN = "\u202f"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits: 0.0123, 1.23, 12,300."""
    if value is None or not isfinite(value):
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:#.{digits}g}".removesuffix("."))


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign always written and `digits` decimals, so that columns line up: +0.310, −1.200."""
    if value is None or not isfinite(value):
        return NOT_AVAILABLE
    return _minus(f"{value:+,.{digits}f}")


def tick(value: float) -> str:
    """A round number on an axis: 0.5, 2, 1e+06."""
    return _minus(f"{value:g}")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent: 0.4123 → 41.2 %."""
    if value is None or not isfinite(value):
        return NOT_AVAILABLE
    return _minus(f"{100 * value:.{digits}f}") + f"{_THIN}%"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of fractions in percentage points, signed: −0.0712 → −7.1."""
    if value is None or not isfinite(value):
        return NOT_AVAILABLE
    return _minus(f"{100 * value:+.{digits}f}")


def thousands(value: int | None) -> str:
    """A whole number with thousands: 12,345."""
    return NOT_AVAILABLE if value is None else _minus(f"{value:,}")


def whole(value: float | None) -> str:
    """A number rounded to a whole one: 1,234."""
    return NOT_AVAILABLE if value is None or not isfinite(value) else thousands(round(value))


def seconds(value: float | None) -> str:
    """A duration: 0.42 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if value is None or not isfinite(value):
        return NOT_AVAILABLE
    if value < 60:
        return f"{value:.2g}{_THIN}s" if value < 1 else f"{value:.1f}{_THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_THIN}h {minutes:02d}{_THIN}min"


def interval(estimate: Estimate, unit: str = "share") -> str:
    """The 95 % interval of an estimate, or nothing where it has none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (in_unit(v, unit).removesuffix(f"{_THIN}%") for v in (estimate.low, estimate.high))
    return f"{low} to {high}"


def in_unit(value: float | None, unit: str) -> str:
    """`value` as a `share` (percent), in percentage `points`, or as a plain `number`."""
    return {"share": percent, "points": points, "signed": signed}.get(unit, number)(value)


def estimate_text(estimate: Estimate, unit: str = "share") -> str:
    """An estimate in one line: value [low to high], or "not available: reason"."""
    if estimate.value is None:
        return f"{NOT_AVAILABLE}: {estimate.reason}" if estimate.reason else NOT_AVAILABLE
    bounds = interval(estimate, unit)
    name = " points" if unit == "points" else ""
    return in_unit(estimate.value, unit) + name + (f" [{bounds}]" if bounds else "")


def _minus(text: str) -> str:
    """A true minus sign, and no sign at all before a zero ("-0.0")."""
    if not text.strip("+-0., "):
        return text.lstrip("+-")
    return text.replace("-", "−")
