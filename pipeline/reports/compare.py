"""The report of `agman compare`: the table as the papers print it, every training, and the curves of validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.storage import Storage
from pipeline.common.console import mean_and_deviation, say
from pipeline.compare.compare import SPLIT, Comparison
from pipeline.compare.systems import BASE, SYSTEMS
from pipeline.evaluation.chance import GUESSING
from pipeline.evaluation.few import marked
from pipeline.reports import charts
from pipeline.reports.html import render
from pipeline.tracking import runs as tracking

DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class ComparisonPage:
    """Content of the template."""

    dataset: str
    digest: str
    drawn: bool
    systems: int
    seeds: int
    header: list[str]
    rows: list[tuple[bool, list[str]]]
    """Whether the row is the base system's, and its cells."""
    queries: list[int]
    """Number of test queries of each attribute."""
    interpreted: bool
    failed: list[str]
    curves: charts.Chart | None
    """None if nothing was trained."""
    settings: dict[str, Any]
    run_id: str


def write_comparison_report(comparison: Comparison) -> Path:
    """Write tables and page to the comparison's folder, send them and its metrics to its MLflow run.

    Returns the page's path. A store that does not answer is a note: the folder has everything.
    """
    report = comparison.folder / "report"
    report.mkdir(exist_ok=True)
    trainings = _trainings(comparison)
    with Storage(report / "trainings.parquet").atomic_file() as file:
        trainings.to_parquet(file)
    header, rows = comparison_table(comparison)
    Storage(report / "trainings.csv").write_bytes(trainings.to_csv(index=False).encode())
    Storage(report / "table.csv").write_bytes(pd.DataFrame(rows, columns=header).to_csv(index=False).encode())
    page = report / "report.html"
    _write_page(comparison, page)
    try:
        comparison.run.log(comparison.metrics, step=len(comparison.scored))
        comparison.run.describe({"result": _in_words(comparison)})
        MlflowClient(comparison.run.uri).log_artifacts(comparison.run.run_id, str(report), "comparison")
    except (MlflowException, OSError) as error:
        say(f"note: the report could not be sent to MLflow ({tracking.reason(error)}); it is in {report}")
    return page


def _in_words(comparison: Comparison) -> str:
    scores = {key: comparison.of_seeds(key, "map") for key in comparison.systems}
    said = [f"{SYSTEMS[key].title} {_cell(values)}" for key, values in scores.items() if values]
    return f"MAP on {SPLIT}, times 100: {', '.join(said)}; chance {100 * comparison.chance['']:.2f}"


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, times 100: mean ± standard deviation over the seeds, and chance in the last row.

    The overall MAP stands before the attributes, so that it is seen in a narrow window.
    """
    names = [marked(name, comparison.queries[name]) for name in comparison.attributes]
    header = ["system", "overall", "− AG-MAN [95 %]", "triplets, %", *names]
    rows = []
    for key in comparison.systems:
        title = SYSTEMS[key].title + (" *" if SYSTEMS[key].interpretation else "")
        if not comparison.of(key):
            reason = next(one.failed for one in comparison.scored if one.system == key)
            rows.append([title, f"failed: {reason}", "", "", *[""] * len(comparison.attributes)])
            continue
        overall, accuracy = (_cell(comparison.of_seeds(key, name)) for name in ("map", "triplet_accuracy"))
        cells = [_cell(comparison.of_seeds(key, f"map/{name}")) for name in comparison.attributes]
        one = comparison.difference(key)
        difference = f"{100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]" if one else ""
        rows.append([title, overall, difference, accuracy, *cells])
    guessed = [f"{100 * comparison.chance[name]:.2f}" for name in ("", *comparison.attributes)]
    rows.append(
        ["chance", guessed[0], "", f"{100 * GUESSING:.2f}" if any(row[3] for row in rows) else "", *guessed[1:]]
    )
    return header, rows


def _cell(values: list[float]) -> str:
    return mean_and_deviation(values) if values else ""


def _trainings(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each training: system, seed, seconds, failed, and every metric."""
    rows = [
        {"system": one.system, "seed": one.seed, "seconds": one.seconds, "failed": one.failed or ""} | one.metrics
        for one in comparison.scored
    ]
    return pd.DataFrame(rows)


def _write_page(comparison: Comparison, out: Path) -> None:
    header, rows = comparison_table(comparison)
    page = ComparisonPage(
        dataset=comparison.dataset,
        digest=comparison.digest,
        drawn=comparison.drawn,
        systems=len(comparison.systems),
        seeds=len({one.seed for one in comparison.scored}),
        header=header,
        rows=[(key == BASE, row) for key, row in zip((*comparison.systems, "chance"), rows, strict=True)],
        queries=list(comparison.queries.values()),
        interpreted=any(SYSTEMS[key].interpretation for key in comparison.systems),
        failed=[f"{one.system}, seed {one.seed}: {one.failed}" for one in comparison.scored if one.failed],
        curves=_curves(comparison),
        settings={key: value for key, value in comparison.settings.items() if value is not None},
        run_id=comparison.run.run_id,
    )
    Storage(out).write_bytes(render("compare.html.j2", page).encode())


def _curves(comparison: Comparison) -> charts.Chart | None:
    """Draw validation MAP over steps: for each system, the first training that did not fail."""
    drawn = [key for key in comparison.systems if comparison.of(key) and SYSTEMS[key].trained]
    histories = {key: comparison.of(key)[0].history for key in drawn}
    if not histories:
        return None

    def draw(axes: Axes, theme: charts.Theme) -> None:
        for number, (key, history) in enumerate(histories.items()):
            colour, dash = theme.series[number % len(theme.series)], DASHES[number // len(theme.series) % len(DASHES)]
            steps, values = zip(*history, strict=True)
            look = {"color": theme.ink, "linewidth": 3.0} if key == BASE else {"color": colour}
            axes.plot(steps, [100 * v for v in values], dash, label=SYSTEMS[key].title, **look)
        charts.show_chance(axes, theme, comparison.valid_chance)
        axes.set(xlabel="step", ylabel="valid MAP × 100", xlim=(0, None))
        axes.figure.legend(loc="outside lower left")

    size = (4.8, 2.9 + 0.2 * len(histories))  # the legend is below, a line for each system
    last = ", ".join(f"{SYSTEMS[key].title} {100 * one[-1][1]:.2f}" for key, one in histories.items())
    alt = f"Validation MAP over steps, one training each; at the end {last}"
    return charts.chart("Validation MAP", f"{alt}, chance {100 * comparison.valid_chance:.2f}", draw, size)
