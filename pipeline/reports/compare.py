"""The page of `agman compare`: the table as the papers print it, and the validation's curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from data_prep.storage import Storage
from pipeline.compare import compare as comparing
from pipeline.reports import charts as figures
from pipeline.reports.html import render

DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    dataset: str
    digest: str
    drawn: bool
    seeds: int
    header: list[str]
    rows: list[tuple[bool, list[str]]]
    """Whether it is the base's, and its cells."""
    interpreted: bool
    failed: list[str]
    curves: figures.Chart
    settings: dict[str, Any]
    run_id: str


def write_page(comparison: comparing.Comparison, out: Path) -> None:
    """One self-contained page; it appears whole or not at all."""
    header, rows = comparing.table(comparison)
    page = Page(
        dataset=comparison.dataset,
        digest=comparison.digest,
        drawn=comparison.drawn,
        seeds=len({one.seed for one in comparison.scored}),
        header=header,
        rows=[(key == comparing.BASE, row) for key, row in zip(comparison.systems, rows, strict=True)],
        interpreted=any(comparing.SYSTEMS[key].interpretation for key in comparison.systems),
        failed=[f"{one.system}, seed {one.seed}: {one.failed}" for one in comparison.scored if one.failed],
        curves=_curves(comparison),
        settings={key: value for key, value in comparison.settings.items() if value is not None},
        run_id=comparison.run.run_id,
    )
    Storage(out).write_bytes(render("compare.html.j2", page).encode())


def _curves(comparison: comparing.Comparison) -> figures.Chart:
    """Validation MAP over steps: of every system the first training that did not fail."""
    histories = {key: comparison.of(key)[0].history for key in comparison.systems if comparison.of(key)}

    def draw(axes: Axes, theme: figures.Theme) -> None:
        for number, (key, history) in enumerate(histories.items()):
            colour, dash = theme.series[number % len(theme.series)], DASHES[number // len(theme.series) % len(DASHES)]
            steps, values = zip(*history, strict=True)
            look = {"color": theme.ink, "linewidth": 3.0} if key == comparing.BASE else {"color": colour}
            axes.plot(steps, [100 * v for v in values], dash, label=comparing.SYSTEMS[key].title, **look)
        axes.set(xlabel="step", ylabel="valid MAP × 100", xlim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)

    last = ", ".join(f"{comparing.SYSTEMS[key].title} {100 * one[-1][1]:.2f}" for key, one in histories.items())
    return figures.chart(
        "Validation MAP", f"Validation MAP over steps, one training each; at the end {last}", draw, (8.0, 3.6)
    )
