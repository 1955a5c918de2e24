"""One row for each trial: typed columns for programs, the same as CSV for spreadsheets.

Columns of objectives and parameters are named as Optuna's own `study.trials_dataframe()` names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.reports.sweep.trials import Parameter, SweepContent, as_setting, plain

PARQUET, CSV = "trials.parquet", "trials.csv"


def trials_table(content: SweepContent) -> pa.Table:
    """number, ended, reason, epochs, best_map, values_*, params_*, seconds, run_id; null where a trial has none."""
    trials = content.trials
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "number": (pa.int64(), [trial.number for trial in trials]),
        "ended": (pa.string(), [trial.ended for trial in trials]),
        "reason": (pa.string(), [trial.reason for trial in trials]),
        "epochs": (pa.int64(), [trial.epochs for trial in trials]),
        "best_map": (pa.float64(), [trial.best for trial in trials]),
    }
    for i, objective in enumerate(content.objectives):
        values = [trial.values[i] if trial.values else None for trial in trials]
        columns[f"values_{plain(objective.name)}"] = (pa.float64(), values)
    for parameter in content.parameters:
        columns[f"params_{plain(parameter.name)}"] = _column(parameter, content)
    columns["seconds"] = (pa.float64(), [trial.seconds for trial in trials])
    columns["run_id"] = (pa.string(), [trial.run_id for trial in trials])
    arrays = [pa.array(values, kind) for kind, values in columns.values()]
    return pa.Table.from_arrays(arrays, names=list(columns))


def write_tables(content: SweepContent, folder: Path) -> None:
    """trials.parquet and trials.csv."""
    table = trials_table(content)
    pq.write_table(table, folder / PARQUET)
    # A missing value is an empty field, an empty text is "".
    pa.csv.write_csv(table, folder / CSV)


def _column(parameter: Parameter, content: SweepContent) -> tuple[pa.DataType, list[Any]]:
    """Its values as what they are; as in KEY=VALUE where they are of several kinds, or one choice is None."""
    settings = [trial.setting for trial in content.trials]
    present = [setting[parameter.name] for setting in settings if parameter.name in setting]
    kinds = {type(value) for value in (*present, *(parameter.choices or ()))}
    for kind, of in ((pa.bool_(), {bool}), (pa.int64(), {int}), (pa.float64(), {int, float})):
        if kinds <= of:
            return kind, [setting.get(parameter.name) for setting in settings]
    name = parameter.name
    return pa.string(), [as_setting(setting[name]) if name in setting else None for setting in settings]
