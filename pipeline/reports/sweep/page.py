"""The artifacts of a search: tables, pictures, and the page that has them all in it."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna

from data_prep import atomic
from data_prep.errors import InputError
from pipeline.common.console import printable
from pipeline.reports.charts import DARK, LIGHT, Theme
from pipeline.reports.html import render
from pipeline.reports.sweep.importance import Importances, importances
from pipeline.reports.sweep.pictures import COLOURS, pictures
from pipeline.reports.sweep.scales import NOT_SET, Scale, parallel_axes, scale
from pipeline.reports.sweep.tables import CSV, PARQUET, write_tables
from pipeline.reports.sweep.trials import DONE, FAILED, STATES, SweepContent, SweepTrial, as_setting, read_study, shown

PAGE = "report.html"
ARTIFACTS = {PARQUET, CSV, PAGE, "history.png", "curves.png", "importances.png", "parallel.png", "pareto.png"}
LONGEST_REASON = 90
LONGEST_TEXT = 400
NAMED = 12
"""Of the trials that failed for one reason, how many are named."""
ALTS = {
    "history.png": "Best validation MAP of every trial by its number, and the best so far",
    "curves.png": "Validation MAP of every trial over its epochs",
    "importances.png": "How much each parameter mattered",
    "parallel.png": "Parallel coordinates: every trial's setting and its best validation MAP",
    "pareto.png": "Every trial's two objectives, and the Pareto front",
}


@dataclass(frozen=True)
class Cell:
    """One cell of the table of trials."""

    text: str
    order: str | float | int | None
    """What the table is sorted by; None goes last."""
    full: str = ""
    """All of a text that is cut short."""


@dataclass(frozen=True)
class Chosen:
    """A trial worth training with."""

    number: int
    figures: dict[str, str]
    setting: str
    """KEY=VALUE ..., as `agman train` takes it."""
    finished: bool


@dataclass(frozen=True)
class Failures:
    """Trials that failed for one reason."""

    reason: str
    full: str
    count: int
    numbers: str


@dataclass(frozen=True)
class _Page:
    """All that the template shows."""

    name: str
    sweep: dict[str, str]
    tiles: dict[str, str]
    counts: dict[str, int]
    several: bool
    """More than one objective: there is a front, not one best trial."""
    pareto: bool
    chosen: list[Chosen]
    failures: list[Failures]
    columns: list[tuple[str, bool]]
    """Heading, and whether it is of text."""
    rows: list[tuple[SweepTrial, list[Cell]]]
    importances: Importances
    colours: dict[str, tuple[str, str]]
    """State -> its colour, light and dark."""
    pictures: dict[str, tuple[str, str]]
    """data: URI and what it shows."""
    data: dict[str, Any]
    """What the charts are drawn from."""
    script: str
    script_hash: str
    """The page runs this script and no other."""


def write_sweep_report(study: optuna.Study, folder: Path, sweep: dict[str, str]) -> list[Path]:
    """Write tables, pictures and the page on `study` to `folder`; returns the files.

    `sweep`: facts for the head of the page. The folder appears whole or not at all, and replaces an older report.
    The same study gives the same files. Raises InputError if it cannot be written, or holds something else.
    """
    with _report_folder(folder) as staging:
        content = read_study(study)
        found = importances(content)
        drawn = pictures(content, found)
        write_tables(content, staging)
        for name, png in drawn.items():
            (staging / name).write_bytes(png)
        page = _page(content, found, drawn, sweep)
        (staging / PAGE).write_text(render("sweep_report.html.j2", page), encoding="utf-8")
    return sorted(folder / name for name in ARTIFACTS & {file.name for file in folder.iterdir()})


@contextmanager
def _report_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write in that replaces an older report. Raises InputError if it cannot be written."""
    folder = folder.absolute()
    try:
        _refuse_others(folder)
        with atomic.folder(folder) as staging:
            yield staging
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a sweep's report is a folder")
    others = sorted({file.name for file in folder.iterdir()} - ARTIFACTS) if folder.is_dir() else []
    if others:
        raise InputError(f"{folder}: has other files in it ({printable(others[0])}); give a new folder")


def _page(content: SweepContent, found: Importances, drawn: dict[str, bytes], sweep: dict[str, str]) -> _Page:
    script = (files("pipeline.reports") / "templates" / "sweep_report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    several = len(content.objectives) > 1
    best = [content.best] if content.best and not several else []
    columns, rows = _table(content)
    return _Page(
        name=content.name,
        sweep={key: str(value) for key, value in sweep.items()},
        tiles=_tiles(content),
        counts=content.counts,
        several=several,
        pareto="pareto.png" in drawn,
        chosen=[_chosen(content, trial) for trial in (content.front if several else best)],
        failures=_failures(content),
        columns=columns,
        rows=rows,
        importances=found,
        colours={state: (_colour(LIGHT, state), _colour(DARK, state)) for state in STATES},
        pictures={
            name: (f"data:image/png;base64,{base64.b64encode(png).decode()}", ALTS[name]) for name, png in drawn.items()
        },
        data=_data(content, found),
        script=script,
        script_hash=base64.b64encode(digest).decode(),
    )


def _colour(theme: Theme, state: str) -> str:
    colour = COLOURS.get(state, LIGHT.ink)
    return theme.ink if colour == LIGHT.ink else theme.series[LIGHT.series.index(colour)]


def _tiles(content: SweepContent) -> dict[str, str]:
    tiles = {"trials": f"{len(content.trials):,}"} | {state: f"{n:,}" for state, n in content.counts.items()}
    epochs = sum(trial.epochs for trial in content.trials)
    tiles[f"epochs, of {content.epochs * len(content.trials):,}"] = f"{epochs:,}"
    if seconds := [trial.seconds for trial in content.trials if trial.seconds is not None]:
        tiles["time in training"] = _duration(sum(seconds))
    return tiles


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _chosen(content: SweepContent, trial: SweepTrial) -> Chosen:
    figures = {"best MAP × 100": "–" if trial.best is None else f"{100 * trial.best:.2f}"}
    for i, objective in content.shown_objectives():
        if trial.values:
            figures[objective.label] = shown(objective.factor * trial.values[i])
    setting = shlex.join(f"{name}={as_setting(value)}" for name, value in trial.setting.items())
    return Chosen(trial.number, figures, setting, finished=trial.ended == DONE)


def _failures(content: SweepContent) -> list[Failures]:
    """By reason, the most frequent first."""
    of_reason: dict[str, list[int]] = {}
    for trial in content.trials:
        if trial.ended == FAILED:
            of_reason.setdefault(trial.reason or "no reason was recorded", []).append(trial.number)
    return [
        Failures(
            printable(reason, LONGEST_REASON),
            printable(reason, LONGEST_TEXT),
            len(numbers),
            ", ".join(map(str, numbers[:NAMED])) + (", …" if len(numbers) > NAMED else ""),
        )
        for reason, numbers in sorted(of_reason.items(), key=lambda item: -len(item[1]))
    ]


def _table(content: SweepContent) -> tuple[list[tuple[str, bool]], list[tuple[SweepTrial, list[Cell]]]]:
    """The best first, then in the order of their MAP."""
    objectives = content.shown_objectives()
    columns = [("trial", False), ("ended", True), ("best MAP × 100", False)]
    columns += [(printable(objective.label, 40), False) for _, objective in objectives]
    columns += [(printable(one.name, 40), one.choices is not None) for one in content.parameters]
    columns += [("epochs", False), ("seconds", False), ("reason", True), ("MLflow run", True)]

    def cells(trial: SweepTrial) -> list[Cell]:
        values = [objective.factor * trial.values[i] if trial.values else None for i, objective in objectives]
        best = None if trial.best is None else round(100 * trial.best, 6)
        return [
            Cell(str(trial.number), trial.number),
            Cell(printable(trial.ended, 20), trial.ended),
            Cell("–" if best is None else f"{best:.2f}", best),
            *(Cell("–" if value is None else shown(value), value) for value in values),
            *(_cell(trial, one.name, one.choices is not None) for one in content.parameters),
            Cell(f"{trial.epochs} of {content.epochs}", trial.epochs),
            Cell("–" if trial.seconds is None else f"{trial.seconds:,.1f}", trial.seconds),
            _text(trial.reason, LONGEST_REASON),
            _text(trial.run_id or "", 12),
        ]

    def rank(trial: SweepTrial) -> tuple[bool, float, int]:
        return trial is not content.best, math.inf if trial.best is None else -trial.best, trial.number

    return columns, [(trial, cells(trial)) for trial in sorted(content.trials, key=rank)]


def _cell(trial: SweepTrial, name: str, of_choices: bool) -> Cell:
    if name not in trial.setting:
        return Cell("–", None)
    value = trial.setting[name]
    if not of_choices:
        return Cell(shown(value), value, as_setting(value))
    return _text(as_setting(value), 30)


def _text(text: str, longest: int) -> Cell:
    cut, full = printable(text, longest), printable(text, LONGEST_TEXT)
    return Cell(cut or "–", full or None, "" if cut == full else full)


def _data(content: SweepContent, found: Importances) -> dict[str, Any]:
    """Plain values for the script, which only draws."""
    axes = parallel_axes(content)
    parameters = content.parameters
    trials = [
        {
            "number": trial.number,
            "ended": trial.ended,
            "reason": printable(trial.reason, LONGEST_REASON),
            "score": None if trial.best is None else round(100 * trial.best, 4),
            "history": [[epoch, round(100 * value, 4)] for epoch, value in trial.history],
            "values": trial.values and [o.factor * v for v, o in zip(trial.values, content.objectives, strict=True)],
            "setting": [
                [printable(one.name, 40), printable(shown(trial.setting[one.name]), 60)]
                for one in parameters
                if one.name in trial.setting
            ],
            "positions": [axis.positions[i] for axis in axes],
        }
        for i, trial in enumerate(content.trials)
    ]
    every = [100 * value for trial in content.trials for _, value in trial.history]
    best = [100 * trial.best for trial in content.trials if trial.best is not None]
    return {
        "trials": trials,
        "best": content.best.number if content.best else None,
        "front": [trial.number for trial in content.front],
        "notSet": NOT_SET,
        "axes": [
            {
                "label": printable(axis.label, 60),
                "ticks": [[at, printable(text, 40)] for at, text in axis.ticks],
                "missing": None in axis.positions,
            }
            for axis in axes
        ],
        "objectives": [
            {
                "label": printable(objective.label, 40),
                "better": "higher" if objective.maximise else "lower",
                "shown": (i, objective) in content.shown_objectives(),
            }
            for i, objective in enumerate(content.objectives)
        ],
        "importances": [[printable(name, 60), share] for name, share in found.shares.items()],
        "scales": {
            "number": _scale(scale([0, max(len(content.trials) - 1, 1)], whole=True)),
            "score": _scale(scale(best)),
            "epoch": _scale(scale([0, content.epochs], whole=True)),
            "map": _scale(scale(every)),
            "values": [
                _scale(scale([o.factor * trial.values[i] for trial in content.trials if trial.values]))
                for i, o in enumerate(content.objectives)
            ],
        },
    }


def _scale(one: Scale) -> dict[str, Any]:
    return {"low": one.low, "high": one.high, "ticks": one.ticks}
