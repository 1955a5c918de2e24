"""The unit tier: neither Ray nor MLflow nor a browser. A test that imports one of them belongs into another tier."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

HEAVY = ("ray", "mlflow", "playwright")


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """Fail the first test after which a heavy package is imported."""
    before = {name for name in HEAVY if name in sys.modules}
    yield
    imported = {name for name in HEAVY if name in sys.modules} - before
    assert not imported, f"a unit test imported {', '.join(sorted(imported))}: it belongs into tests/integration"
