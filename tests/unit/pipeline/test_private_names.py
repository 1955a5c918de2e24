"""No private names of other packages: the next release may change them without a word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("agman", "data_prep", "pipeline", "tune_spaces", "benchmarks")
UNDOCUMENTED = ("mlflow.utils", "mlflow.system_metrics.system_metrics_monitor", "ray.core")
"""Modules without an underscore that their packages' documentation does not list."""
DOCUMENTED = {"_replace", "_fields", "_asdict", "_make", "_exit"}
"""Public methods of named tuples, and `os._exit`."""
LOAD = "MLflow's documented switch logs only to the active run of its fluent API"
GROUPS = "Ray's public tables omit the creator of a placement group"
ALLOWED: dict[tuple[str, str], str] = {
    ("pipeline/tracking/runs.py", "mlflow.system_metrics.system_metrics_monitor"): LOAD,
    ("pipeline/cluster/orphans.py", "ray._private.state"): GROUPS,
    ("pipeline/cluster/orphans.py", "._connect_and_get_accessor"): GROUPS,
    ("pipeline/cluster/orphans.py", "ray.core.generated.gcs_pb2"): GROUPS,
}
"""(file, private name) -> reason."""
READ_IN = {"ray": "2.60.", "mlflow": "3.17."}
"""Versions in which these names were read. For a newer one, run tests/integration/test_{tracking,cluster}.py."""


def is_private(name: str) -> bool:
    """Return whether a part of a dotted name begins with one underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the dotted names that a module imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_names(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, variables, and attributes of `self`."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            yield node.attr


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_names(files: dict[str, str]) -> set[tuple[str, str]]:
    """Return (file, private name of another package): what is imported, and `object._name` that no file defines."""
    nodes = {file: [*ast.walk(ast.parse(code))] for file, code in files.items()}
    own = DOCUMENTED | {name for each in nodes.values() for name in own_names(each)}
    found = set()
    for file, each in nodes.items():
        for name in imported(each):
            if not name.startswith(FOLDERS) and (is_private(name) or name.startswith(UNDOCUMENTED)):
                found.add((file, name))
        for node in each:
            if isinstance(node, ast.Attribute) and is_private(node.attr) and not of_self(node) and node.attr not in own:
                found.add((file, f".{node.attr}"))
    return found


def without_last(name: str) -> str:
    return name.rpartition(".")[0] or name


def test_no_private_names_of_other_packages() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = private_names({path.relative_to(ROOT).as_posix(): path.read_text() for path in paths})
    known = {key for file, name in found for key in ((file, name), (file, without_last(name))) if key in ALLOWED}
    unknown = {(file, name) for file, name in found if not {(file, name), (file, without_last(name))} & known}
    assert not unknown
    assert known == ALLOWED.keys(), "the table has names that are no longer used"


@pytest.mark.parametrize(("package", "read_in"), READ_IN.items())
def test_the_allowed_names_were_read_in_the_installed_version(package: str, read_in: str) -> None:
    assert version(package).startswith(read_in)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import ray._private.worker", "ray._private.worker"),
        ("from ray.train import _internal", "ray.train._internal"),
        ("from mlflow.utils.time import get_current_time_millis", "mlflow.utils.time.get_current_time_millis"),
        ("from mlflow.store._unity import x", "mlflow.store._unity.x"),
        ("def f():\n    from optuna._hypervolume import x", "optuna._hypervolume.x"),
        ("import torch\ntorch._C._get_tracing_state()", "._C"),
        ("import ray\nray.train._internal.session", "._internal"),
        ("optimizer.step._opt_called = True\nprint(study._storage)", "._storage"),
    ],
)
def test_they_are_found(code: str, name: str) -> None:
    assert ("a.py", name) in private_names({"a.py": code})


def test_own_and_public_names_are_not() -> None:
    code = "import torch\nfrom pipeline.x import _own\nclass A:\n    _b = 1\n    def f(self):\n        self._c = A._b"
    assert not private_names({"a.py": f"{code}\nrow._replace(x=1)\ntorch.__version__\nother._c"})
