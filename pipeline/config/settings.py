"""The settings of a training as text."""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import TrainConfig, allowed


def typed(config: TrainConfig) -> str:
    """Return the settings as they are typed on the command line: KEY=VALUE, separated by blanks."""
    return " ".join(f"{key}={_text(value)}" for key, value in config.model_dump().items())


def described(config: TrainConfig) -> list[list[str]]:
    """Return a row for each setting: key, value, allowed values, meaning."""
    return [
        [name, _text(getattr(config, name)), allowed(name), (field.description or "").replace("\n", " ")]
        for name, field in TrainConfig.model_fields.items()
    ]


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
