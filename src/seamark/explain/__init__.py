"""Explaining and rating features."""

from seamark.explain.ratings import Rating, statistical_ratings

__all__ = ["Rating", "statistical_ratings"]
