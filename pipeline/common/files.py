"""JSON files that the driver and the workers read."""

from __future__ import annotations

import json
from typing import Any

from data_prep.storage import Storage


def read_json(file: Storage) -> dict[str, Any]:
    """Return the content of a JSON object file; {} if it does not exist or is not complete."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(file: Storage, content: dict[str, Any]) -> None:
    """Write `content` to a JSON file."""
    file.write_bytes((json.dumps(content, indent=2) + "\n").encode())
