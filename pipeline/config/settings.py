"""The settings of a training, shown to people."""

from __future__ import annotations

from typing import Any

from pipeline.common.console import say, show_table
from pipeline.config.presets import PRESETS
from pipeline.config.schema import TrainConfig, allowed


def show_settings(config: TrainConfig) -> None:
    """The resolved configuration, in the form it is typed."""
    say("settings: " + " ".join(f"{key}={_typed(value)}" for key, value in config.model_dump().items()))


def describe_settings(config: TrainConfig, preset: str | None) -> None:
    """Every setting with its value, its choice and its meaning, after what the preset says of itself."""
    if preset:
        say(f"preset {preset}: {PRESETS[preset].about}")
    rows = [
        [name, _typed(getattr(config, name)), allowed(name), (field.description or "").replace("\n", " ")]
        for name, field in TrainConfig.model_fields.items()
    ]
    show_table("settings, given as KEY=VALUE", ["key", "value", "allowed", "meaning"], rows)


def _typed(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
