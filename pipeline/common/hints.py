"""Hints for mistyped names; data_prep gives them too."""

from data_prep.hints import nearest

__all__ = ["nearest"]
