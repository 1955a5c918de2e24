"""Hints for mistyped names, under the name that the rooms import."""

from basics.hints import nearest

__all__ = ["nearest"]
