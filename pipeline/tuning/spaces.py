"""Search spaces for `agman tune --space NAME`: found by name, tried and checked before anything trains."""

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
from data_prep.hints import nearest
from pipeline.config.schema import make_config

DRAWS = 30
"""Number of settings that are drawn from a space to check it."""


@dataclass(frozen=True)
class Space:
    """Search space: the settings that vary, and the first trial."""

    name: str
    """Name as given to --space."""
    define: Callable[[optuna.Trial], Any]
    start: dict[str, Any]
    """Setting of trial 0; empty if a user's own space has none."""
    varied: frozenset[str]
    """Every setting that the space suggested when it was tried."""
    about: str
    """First paragraph of the module's docstring."""


def find_space(name: str) -> Space:
    """Return the space of a module of tune_spaces, or of a user's own function given as MODULE:FUNCTION.

    MODULE may lie in the working folder, and may define START. Raises InputError with the cause if the space does not
    exist, cannot be imported, fails, suggests nothing, or suggests or starts from an impossible setting.
    """
    if ":" not in name and name not in space_names():
        raise InputError(
            f"--space {name}: no such search space; {nearest(name, space_names())} Your own: --space MODULE:FUNCTION"
        )
    try:
        module, define = _own(name) if ":" in name else _named(name)
        start = _start(module)
        trials = [_define(define, trial) for trial in _ask_trials(DRAWS)]
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
    """Return the names of the modules of tune_spaces."""
    return [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]


def draw(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` settings drawn evenly from the space. Raises InputError if its function fails."""
    return [_define(space.define, trial).params for trial in _ask_trials(count, seed=seed)]


def distributions(space: Space) -> dict[str, list[BaseDistribution]]:
    """Return the ranges of every setting that the space varies, as far as draws show them."""
    found: dict[str, list[BaseDistribution]] = {}
    for trial in (_define(space.define, trial) for trial in (*_ask_trials(1, space.start), *_ask_trials(DRAWS))):
        for key, distribution in trial.distributions.items():
            if distribution not in found.setdefault(key, []):
                found[key].append(distribution)
    return found


def refuse_varied(space: Space, settings: Iterable[str]) -> None:
    """Raise InputError if the space varies one of the `settings` (KEY or KEY=VALUE) that the user fixed."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in space.varied:
            raise InputError(f"{key}=...: the space {space.name!r} varies it; leave it out or take another space")


def _named(name: str) -> tuple[ModuleType, Callable[[optuna.Trial], Any]]:
    module = importlib.import_module(f"tune_spaces.{name}")
    return module, module.space


def _own(name: str) -> tuple[ModuleType, Callable[[optuna.Trial], Any]]:
    """Return a user's module and function. The working folder joins Python's path, as with `python -m`."""
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
            raise InputError(f"{module_name} cannot be imported: {_describe(error)}") from error
        raise InputError(f"there is no module {module_name!r} in {folder} or on Python's path") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{module_name} cannot be imported: {_describe(error)}") from error
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


def _ask_trials(count: int, start: dict[str, Any] | None = None, seed: int = 0) -> Iterator[optuna.Trial]:
    """Yield trials of a study in memory whose values are drawn evenly; the first has the values of `start`."""
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


def _define(define: Callable[[optuna.Trial], Any], trial: optuna.Trial) -> optuna.Trial:
    """Return the trial with the space's suggestions. Raises InputError if the space fails."""
    try:
        returned = define(trial)
    except Exception as error:
        raise InputError(f"it failed: {_describe(error)}") from error
    if returned is not None:
        raise InputError(
            f"it returns a {type(returned).__name__}, which nothing reads; have it suggest and return None"
        )
    return trial


def _check_suggestions(trials: list[optuna.Trial]) -> None:
    """Raise InputError if a drawn setting, or an end of a range, is impossible."""
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
    """Return the settings that the space suggests when it starts from START. Raises InputError if START is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Fixed parameter")  # START is outside a suggested range
            (trial,) = (_define(define, trial) for trial in _ask_trials(1, start))
        make_config(trial.params)
    except InputError as error:
        raise InputError(f"START: {error}") from error
    for key in start:
        if key not in trial.params:
            hint = "leave it out" if key in varied else nearest(str(key), sorted(trial.params))
            beside = " beside START's other settings" if key in varied else ""
            raise InputError(f"START has {key!r}, which the space does not suggest{beside}; {hint}")
    return frozenset(trial.params)


def _describe(error: BaseException) -> str:
    """Return one line with the error and its location in the user's files."""
    said = str(error).strip().splitlines()
    ours = (__file__, "<frozen", str(Path(optuna.__file__).parent))
    user_frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    where = f" ({user_frames[-1].filename}, line {user_frames[-1].lineno})" if user_frames else ""
    return ": ".join([type(error).__name__, *said[:1]]) + where
