"""The charts as PNG files, to look at without a browser."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipeline.common.console import printable
from pipeline.reports.charts import LIGHT, style
from pipeline.reports.sweep.importance import Importances
from pipeline.reports.sweep.scales import NOT_SET, parallel_axes
from pipeline.reports.sweep.trials import DONE, FAILED, PRUNED, RUNNING, STOPPED, WAITING, SweepContent, SweepTrial

DPI = 150
SIZE = (8.0, 4.6)  # inches
AXIS_WIDTH = 1.25
"""Inches between two of the parallel axes."""
MARKERS = {DONE: "o", PRUNED: "v", FAILED: "X", STOPPED: "s", RUNNING: "D", WAITING: "P"}
COLOURS = {
    DONE: LIGHT.series[0],
    PRUNED: LIGHT.series[1],
    FAILED: LIGHT.series[3],
    STOPPED: LIGHT.series[4],
    RUNNING: LIGHT.series[2],
    WAITING: LIGHT.ink,
}
"""Told apart by people who are colour-blind; the markers differ besides."""
HEAT = matplotlib.colormaps["cividis_r"]
BEST = "#111111"
LONGEST_NAME = 28


def pictures(content: SweepContent, found: Importances) -> dict[str, bytes]:
    """File name -> PNG; pareto.png only where there are two objectives."""
    files = {
        "history.png": _png(lambda axes: _history(axes, content)),
        "curves.png": _png(lambda axes: _curves(axes, content)),
        "importances.png": _png(
            lambda axes: _importances(axes, found), (SIZE[0], 1.9 + 0.34 * max(4, len(found.shares)))
        ),
        "parallel.png": _png(
            lambda axes: _parallel(axes, content), (max(SIZE[0], AXIS_WIDTH * (len(content.parameters) + 2)), 5.4)
        ),
    }
    if len(content.objectives) == 2:
        files["pareto.png"] = _png(lambda axes: _pareto(axes, content))
    return files


def _png(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> bytes:
    with matplotlib.rc_context(style(LIGHT) | {"text.parse_math": False}), warnings.catch_warnings():
        # A name may have characters that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.draw()
    file = io.BytesIO()
    # A palette: a third of the bytes, and the page carries the pictures.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


def _history(axes: Axes, content: SweepContent) -> None:
    """Every trial has a mark; those without a score stand below the scale."""
    scored = content.scored
    _title(axes, "Trials of the search", "number of the trial", "best validation MAP × 100")
    if not scored:
        _say(axes, "No trial was validated.")
    best = [100 * (trial.best or 0) for trial in scored]
    if scored:
        numbers = [trial.number for trial in scored]
        until = [*numbers, content.trials[-1].number]
        rising = np.maximum.accumulate(best)
        axes.step(until, [*rising, rising[-1]], where="post", color=LIGHT.ink, linewidth=1.6, label="best so far")
    span = max(best, default=1.0) - min(best, default=0.0) or 1.0
    floor = min(best, default=0.0) - 0.1 * span
    for state in content.counts:
        of_state = [trial for trial in content.trials if trial.ended == state]
        heights = [floor if trial.best is None else 100 * trial.best for trial in of_state]
        axes.scatter([trial.number for trial in of_state], heights, **_look(state), label=_named(state, of_state))
    if len(scored) < len(content.trials) and scored:
        line = floor + 0.05 * span
        axes.axhline(line, color=LIGHT.ink, linewidth=0.8, linestyle=":")
        axes.set_yticks([*(tick for tick in axes.get_yticks() if line < tick <= max(best) + 0.05 * span), floor])
        axes.set_yticklabels([*(f"{tick:g}" for tick in axes.get_yticks()[:-1]), "none"])
    if content.best:
        _star(axes, content.best.number, 100 * (content.best.best or 0), f"best: trial {content.best.number}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)


def _curves(axes: Axes, content: SweepContent) -> None:
    """One line for each trial, with a mark where it ended."""
    _title(axes, "Validation MAP of each trial over its epochs", "epoch", "validation MAP × 100")
    best = content.best
    if not best or not best.history:
        return _say(axes, "No trial was validated.")
    alpha = min(0.85, max(0.25, 12 / len(content.scored)))
    handles = [Line2D([], [], color=BEST, linewidth=2.4, label=f"best: trial {best.number}")]
    for state in content.counts:
        of_state = [trial for trial in content.scored if trial.ended == state]
        lines = [[(epoch, 100 * value) for epoch, value in trial.history] for trial in of_state]
        colour, marker = COLOURS.get(state, LIGHT.ink), MARKERS.get(state, "*")
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.1, alpha=alpha))
        axes.scatter([line[-1][0] for line in lines], [line[-1][1] for line in lines], **_look(state, 26))
        if of_state:
            label = _named(state, of_state)
            handles.append(Line2D([], [], linewidth=1.1, color=colour, marker=marker, label=label))
    axes.plot(*zip(*((epoch, 100 * value) for epoch, value in best.history), strict=True), color=BEST, linewidth=2.4)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0, content.epochs * 1.03)
    _legend(axes, handles)


def _importances(axes: Axes, found: Importances) -> None:
    axes.set_title("What mattered", loc="left", fontweight="bold")
    axes.figure.supxlabel(_wrapped(found.meaning), fontsize=8.5, x=0.02, ha="left", color=LIGHT.ink)
    if not found.shares:
        return _say(axes, "")
    rows = np.arange(len(found.shares))
    axes.barh(rows, list(found.shares.values()), color=LIGHT.series[0], height=0.62)
    for row, share in enumerate(found.shares.values()):
        axes.annotate(f"{share:.2f}", (share, row), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [printable(name, LONGEST_NAME) for name in found.shares])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="share of the importance", xlim=(0, 1.12 * max(found.shares.values())))


def _parallel(axes: Axes, content: SweepContent) -> None:
    """Trials as lines across upright axes of a height each, the best in front."""
    uprights = parallel_axes(content)
    _title(axes, "Settings and what came of them", "", "")
    scores = [trial.best for trial in content.scored if trial.best is not None]
    norm = Normalize(100 * min(scores, default=0), 100 * max(scores, default=1))

    def line(trial: SweepTrial) -> list[tuple[float, float]]:
        heights = (upright.positions[trial.number] for upright in uprights)
        return [(x, NOT_SET if height is None else height) for x, height in enumerate(heights)]

    unscored = [line(trial) for trial in content.trials if trial.best is None]
    axes.add_collection(LineCollection(unscored, colors=LIGHT.ink, linewidths=0.8, linestyles=":", alpha=0.6))
    rising = sorted(content.scored, key=lambda trial: trial.best or 0.0)
    colours = [HEAT(norm(100 * (trial.best or 0.0))) for trial in rising]
    axes.add_collection(LineCollection([line(trial) for trial in rising], colors=colours, linewidths=1.2, alpha=0.75))
    if content.best:
        label = f"best: trial {content.best.number}"
        axes.plot(*zip(*line(content.best), strict=True), color=BEST, linewidth=2.6, zorder=5, label=label)
    for x, upright in enumerate(uprights):
        axes.plot([x, x], [0, 1], color=LIGHT.ink, linewidth=1.2, zorder=6)
        for height, text in upright.ticks:
            _tick(axes, x, height, printable(text, 14))
        if None in upright.positions:
            _tick(axes, x, NOT_SET, "–")
    names = [printable(upright.label, LONGEST_NAME) for upright in uprights]
    long = max(map(len, names)) > 13
    axes.set_xticks(range(len(uprights)), names, rotation=20 if long else 0, ha="right" if long else "center")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlim(-0.35, len(uprights) - 0.35)
    axes.set_ylim(NOT_SET - 0.05, 1.05)
    if any(None in upright.positions for upright in uprights):
        axes.set_xlabel("–: the trial does not have this value", loc="left")
    if scores:
        bar = axes.figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, pad=0.01, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label("best validation MAP × 100")
    if content.best:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0))


def _tick(axes: Axes, x: float, height: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.plot([x - 0.025, x], [height, height], color=LIGHT.ink, linewidth=1, zorder=6)
    axes.annotate(
        text,
        (x, height),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8.5,
        bbox=box,
        zorder=7,
    )


def _pareto(axes: Axes, content: SweepContent) -> None:
    """The second objective across, the first upwards."""
    up, across = content.objectives
    _title(axes, "Pareto front", *(f"{o.label}, {'higher' if o.maximise else 'lower'} is better" for o in (across, up)))
    done = [trial for trial in content.trials if trial.values]
    if not done:
        return _say(axes, "No trial was trained to its end.")

    def points(trials: Iterable[SweepTrial]) -> list[tuple[float, ...]]:
        values = [trial.values or [] for trial in trials]
        return list(zip(*((across.factor * b, up.factor * a) for a, b in values), strict=True))

    others = [trial for trial in done if trial not in content.front]
    if others:
        xs, ys = points(others)
        axes.scatter(xs, ys, **_look(DONE) | {"alpha": 0.5}, label=f"{len(others)} others")
    line = sorted(content.front, key=lambda trial: (trial.values or [])[1])
    # What is attained: a staircase, not the straight way between two trials.
    steps = "steps-pre" if across.maximise else "steps-post"
    axes.plot(*points(line), "--", drawstyle=steps, color=COLOURS[PRUNED], linewidth=1.4, zorder=2)
    xs, ys = points(line)
    axes.scatter(xs, ys, s=80, marker="D", color=COLOURS[PRUNED], zorder=3, label=f"{len(line)} on the front")
    axes.margins(0.08)
    named: list[np.ndarray] = []
    for trial, *point in zip(line, *points(line), strict=True):
        place = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if all(np.abs(place - other).max() > 0.07 for other in named):
            named.append(place)
            axes.annotate(f"{trial.number}", point, (-7, 5), textcoords="offset points", ha="right", fontsize=8.5)  # type: ignore[arg-type]
    _legend(axes)


def _look(state: str, area: float = 34) -> dict[str, Any]:
    return {"marker": MARKERS.get(state, "*"), "color": COLOURS.get(state, LIGHT.ink), "s": area, "linewidths": 0}


def _named(state: str, trials: list[SweepTrial]) -> str:
    return f"{len(trials)} {printable(state, LONGEST_NAME)}"


def _star(axes: Axes, x: float, y: float, label: str) -> None:
    axes.scatter([x], [y], s=170, marker="*", color=BEST, zorder=4, label=label)


def _title(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xlabel=across, ylabel=up)


def _legend(axes: Axes, handles: list[Line2D] | None = None) -> None:
    axes.figure.legend(handles=handles or axes.get_legend_handles_labels()[0], loc="outside lower center", ncols=4)


def _say(axes: Axes, text: str) -> None:
    axes.set_yticks([])
    axes.set_xticks([])
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 105, break_on_hyphens=False))
