"""The report of a study: `trials.parquet`, `trials.csv`, charts as PNG files, and a page that holds them all."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from data_prep import atomic
from data_prep.errors import InputError
from pipeline.common.console import printable
from pipeline.config.schema import TrainConfig, without_effect
from pipeline.reports.html import render
from pipeline.reports.study.charts import TITLES, StudyChart, draw
from pipeline.tuning.study import CHANCE, EPOCHS, FAILED, METRIC, OBJECTIVES, Trial, best_of, front_of, trials_in

PAGE = "report.html"
ARTIFACTS = {"trials.parquet", "trials.csv", PAGE, *(f"{name}.png" for name in TITLES)}


@dataclass(frozen=True)
class _StudyPage:
    """Content of the template."""

    name: str
    facts: dict[str, str]
    tiles: dict[str, str]
    several: bool
    """Whether there is more than one objective: a front instead of one best trial."""
    chance: float | None
    """MAP of a random ranking, if the study has it."""
    chosen: list[tuple[Trial, str]]
    """Trials worth training with, and their settings as `KEY=VALUE ...` for `agman train`."""
    failures: dict[str, list[int]]
    """Numbers of the failed trials by reason, the most frequent reason first."""
    columns: list[str]
    rows: list[dict[str, Any]]
    """Table of trials, best first."""
    charts: list[tuple[StudyChart, str]]
    """Charts, and their pictures as data URIs."""
    scripts: list[str]
    hashes: list[str]
    """Hashes of the scripts; the page runs no others."""


def write_study_report(study: optuna.Study, folder: Path, facts: dict[str, str]) -> list[Path]:
    """Write tables, charts and the page on `study` to `folder`, and return the files.

    The folder appears complete or not at all and replaces an older report. The same study gives the same files.
    `facts` are shown at the end of the page. Raises InputError if `folder` cannot be written or holds other files.
    """
    with _report_folder(folder) as staging:
        trials, charts = trials_in(study), draw(study)
        table = trials_table(study, trials)
        pq.write_table(table, staging / "trials.parquet")
        pa.csv.write_csv(table, staging / "trials.csv")  # a missing value is an empty field, an empty text is ""
        for chart in charts:
            (staging / f"{chart.name}.png").write_bytes(chart.png)
        (staging / PAGE).write_text(
            render("study.html.j2", _page(study, trials, table, charts, facts)), encoding="utf-8"
        )
    return sorted(folder / name for name in ARTIFACTS & {file.name for file in folder.iterdir()})


def _page(
    study: optuna.Study, trials: list[Trial], table: pa.Table, charts: list[StudyChart], facts: dict[str, str]
) -> _StudyPage:
    rows, several, chance = table.to_pylist(), len(study.directions) > 1, study.user_attrs.get(CHANCE)
    best, front = best_of(trials), front_of(trials) if several else []
    failures: dict[str, list[int]] = {}
    for trial in trials:
        if trial.state == FAILED:
            failures.setdefault(trial.reason or "no reason was recorded", []).append(trial.number)
    scripts = [get_plotlyjs(), (files("pipeline.reports") / "templates" / "study.js").read_text(encoding="utf-8")]
    epochs = sum(row["epochs"] for row in rows)
    return _StudyPage(
        name=study.study_name,
        facts={key: str(value) for key, value in facts.items()},
        tiles={"trials": str(len(trials))}
        | {state: str(count) for state, count in Counter(trial.state for trial in trials).items()}
        | {f"epochs, of {study.user_attrs.get(EPOCHS, 0) * len(trials):,}": f"{epochs:,}"}
        | ({"chance MAP × 100": f"{100 * chance:.2f}"} if chance is not None else {})
        | {"minutes of training": f"{sum(trial.seconds for trial in trials) / 60:.1f}"},
        several=several,
        chance=chance,
        chosen=[(trial, as_settings(trial.setting)) for trial in (front if several else [best] if best else [])],
        failures=dict(sorted(failures.items(), key=lambda item: -len(item[1]))),
        columns=table.column_names,
        rows=sorted(
            rows,
            key=lambda row: (
                not best or row["number"] != best.number,
                row["best_map"] is None,
                -(row["best_map"] or 0.0),
            ),
        ),
        charts=[(one, f"data:image/png;base64,{base64.b64encode(one.png).decode()}") for one in charts],
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )


def as_settings(setting: dict[str, Any]) -> str:
    """Return a trial's setting as KEY=VALUE ..., without what has no effect in it, which `agman train` refuses."""
    cause_of = without_effect(TrainConfig.model_construct(**setting))
    read = {key: value for key, value in setting.items() if cause_of.get(key) not in setting}
    return shlex.join(f"{key}={as_setting(value)}" for key, value in read.items())


def as_setting(value: Any) -> str:
    """Return a value as in KEY=VALUE, which `agman train` reads back as the same value."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def trials_table(study: optuna.Study, trials: list[Trial]) -> pa.Table:
    """Return one row for each trial: number, ended, reason, epochs, best_map, values_*, params_*, seconds, run_id.

    Values that a trial does not have are null. The columns are named like those of Optuna's `trials_dataframe`.
    """
    columns = {
        "number": pa.array([trial.number for trial in trials], pa.int64()),
        "ended": pa.array([trial.state for trial in trials], pa.string()),
        "reason": pa.array([_plain(trial.reason) for trial in trials], pa.string()),
        "epochs": pa.array([max(dict(trial.history), default=0) for trial in trials], pa.int64()),
        "best_map": pa.array([_best(trial) for trial in trials], pa.float64()),
    }
    for i, objective in enumerate(study.user_attrs.get(OBJECTIVES, [METRIC])):
        values = [trial.objectives[i] if trial.objectives else None for trial in trials]
        columns[f"values_{objective}"] = pa.array(values, pa.float64())
    for key in dict.fromkeys(key for trial in trials for key in trial.setting):
        columns[f"params_{_plain(key)}"] = _column([trial.setting.get(key, _MISSING) for trial in trials])
    columns["seconds"] = pa.array([trial.seconds for trial in trials], pa.float64())
    columns["run_id"] = pa.array([trial.run_id for trial in trials], pa.string())
    return pa.table(columns)


_MISSING = object()


def _column(values: list[Any]) -> pa.Array:
    """Return a setting's values in their own type; as text if they are of several types, or None is one of them."""
    with suppress(pa.ArrowInvalid, pa.ArrowTypeError):
        if None not in values:
            return pa.array([None if value is _MISSING else value for value in values])
    return pa.array([None if value is _MISSING else as_setting(value) for value in values], pa.string())


def _best(trial: Trial) -> float | None:
    return max((value for _, value in trial.history if math.isfinite(value)), default=None)


def _plain(text: str) -> str:
    """Return `text` with escapes for what UTF-8 cannot hold, such as bytes of broken file names."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _report_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that replaces an older report when the block ends. Raises InputError if it cannot be written."""
    folder = folder.absolute()
    try:
        _refuse_others(folder)
        with atomic.folder(folder) as staging:
            yield staging
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a study's report is a folder")
    others = sorted({file.name for file in folder.iterdir()} - ARTIFACTS) if folder.is_dir() else []
    if others:
        raise InputError(f"{folder}: has other files in it ({printable(others[0])}); give a new folder")
