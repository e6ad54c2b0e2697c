"""The dimension an audit is about; it lives with the raters, who ask for it."""

from __future__ import annotations

from seamark.explain.dimension import SAFETY, Dimension

__all__ = ["SAFETY", "Dimension"]
