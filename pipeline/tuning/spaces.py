"""Search spaces by name, for `agman tune --space NAME`: found, tried out and checked before anything trains."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import tune_spaces
from data_prep.errors import InputError
from pipeline.common.hints import nearest
from pipeline.config.schema import make_config

DRAWS = 30
"""Settings that a space is tried with."""


@dataclass(frozen=True)
class Space:
    """What varies in a search, and where it starts."""

    name: str
    """As given."""
    define: Callable[[optuna.Trial], Any]
    start: dict[str, Any]
    """Trial 0; empty if the user's own space has none."""
    varied: frozenset[str]
    """Every setting that it suggested when it was tried."""
    about: str
    """First paragraph of its module's docstring."""


def find_space(name: str) -> Space:
    """A module of tune_spaces, or the user's own function as MODULE:FUNCTION, with START beside it or without.

    MODULE may lie in the working folder. Raises InputError, naming what is at fault, for a space that is not there,
    cannot be imported, fails, suggests nothing, or suggests (or starts from) a setting that no training can have.
    """
    if ":" not in name and name not in space_names():
        raise InputError(
            f"--space {name}: no such search space; {nearest(name, space_names())} Your own: --space MODULE:FUNCTION"
        )
    try:
        module, define = _own(name) if ":" in name else _named(name)
        start = _start(module)
        trials = [_defined(define, trial) for trial in _asked(DRAWS)]
        varied = frozenset(key for trial in trials for key in trial.params)
        if not varied:
            raise InputError("it suggests nothing; have it call trial.suggest_float and the like")
        _check_suggestions(trials)
        if start:
            varied |= _check_start(define, start, varied)
    except InputError as error:
        raise InputError(f"--space {name}: {error}") from error
    about = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return Space(name, define, start, varied, about)


def space_names() -> list[str]:
    """The modules of tune_spaces."""
    return [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]


def draw(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Settings drawn evenly from the space. Raises InputError if its function fails."""
    return [_defined(space.define, trial).params for trial in _asked(count, seed=seed)]


def refuse_varied(space: Space, settings: Iterable[str]) -> None:
    """Raises InputError if a setting that the user fixed, KEY or KEY=VALUE, is one that the space varies."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in space.varied:
            raise InputError(f"{key}=...: the space {space.name!r} varies it; leave it out or take another space")


def _named(name: str) -> tuple[ModuleType, Callable[[optuna.Trial], Any]]:
    module = importlib.import_module(f"tune_spaces.{name}")
    return module, module.space


def _own(name: str) -> tuple[ModuleType, Callable[[optuna.Trial], Any]]:
    """The user's module and function. The working folder joins Python's path, as with `python -m`."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError("a space of your own is given as MODULE:FUNCTION")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{module_name} cannot be imported: {_told(error)}") from error
        raise InputError(f"there is no module {module_name!r} in {folder} or on Python's path") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{module_name} cannot be imported: {_told(error)}") from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        hint = nearest(attribute, functions) if functions else f"define it: def {attribute}(trial): ..."
        raise InputError(f"{module_name} has no {attribute!r}; {hint}")
    define = getattr(module, attribute)
    if not callable(define):
        raise InputError(f"{attribute!r} is a {type(define).__name__}; give a function of an optuna.Trial")
    return module, define


def _start(module: ModuleType) -> dict[str, Any]:
    start = getattr(module, "START", {})
    if not isinstance(start, dict):
        raise InputError(f"START is a {type(start).__name__}; make it a dict of settings, or leave it out")
    return dict(start)


def _asked(count: int, start: dict[str, Any] | None = None, seed: int = 0) -> Iterator[optuna.Trial]:
    """Trials of a study in memory whose values fall evenly; the first has `start`'s."""
    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if start:
        study.enqueue_trial(start)
    for _ in range(count):
        yield study.ask()


@contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _defined(define: Callable[[optuna.Trial], Any], trial: optuna.Trial) -> optuna.Trial:
    """The trial, with the space's suggestions."""
    try:
        returned = define(trial)
    except Exception as error:
        raise InputError(f"it failed: {_told(error)}") from error
    if returned is not None:
        raise InputError(
            f"it returns a {type(returned).__name__}, which nothing reads; have it suggest and return None"
        )
    return trial


def _check_suggestions(trials: list[optuna.Trial]) -> None:
    """The settings that were drawn, and the ends of all ranges."""
    distributions = dict.fromkeys(item for trial in trials for item in trial.distributions.items())
    ends = [{key: value} for key, distribution in distributions for value in _ends(distribution)]
    for setting in [*(trial.params for trial in trials), *ends]:
        try:
            make_config(setting)
        except InputError as error:
            raise InputError(f"it suggests {error}") from error


def _ends(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def _check_start(
    define: Callable[[optuna.Trial], Any], start: dict[str, Any], varied: frozenset[str]
) -> frozenset[str]:
    """What the space suggests when it starts from START."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Fixed parameter")  # out of the range that is suggested
            (trial,) = (_defined(define, trial) for trial in _asked(1, start))
        make_config(trial.params)
    except InputError as error:
        raise InputError(f"START: {error}") from error
    for key in start:
        if key not in trial.params:
            hint = "leave it out" if key in varied else nearest(str(key), sorted(trial.params))
            beside = " beside START's other settings" if key in varied else ""
            raise InputError(f"START has {key!r}, which the space does not suggest{beside}; {hint}")
    return frozenset(trial.params)


def _told(error: BaseException) -> str:
    """In one line: what, and where in the user's files."""
    said = str(error).strip().splitlines()
    not_theirs = (__file__, "<frozen", str(Path(optuna.__file__).parent))
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(not_theirs)]
    where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return ": ".join([type(error).__name__, *said[:1]]) + where
