"""Charts of counts: bars with names for few values, ranks on a logarithmic scale for many."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from data_prep.tables import SPLITS
from data_prep.words import counted
from pipeline.common.console import printable
from pipeline.reports.charts import Chart, Theme, chart
from pipeline.reports.dataset.contents import Contents, PerSplit, ValueCounts

BARS = 30
"""Largest number of values shown as bars; with more, the counts are shown over ranks."""
LONGEST_NAME = 26
NAMED = 5
"""Number of values that are named of the head and of the tail."""
WIDTH, ROW, MARGIN = 4.4, 0.25, 0.45  # inches
DOTS = (3.6, 2.2)
"""Sizes of the dots of the other splits: two dots at the same point are both visible."""
LOWEST = 0.7
"""Bottom of the logarithmic scale: 1 is above it, 0 is not shown."""


@dataclass(frozen=True)
class Distribution:
    """Chart of one attribute and the text below it."""

    chart: Chart
    head: list[tuple[str, int]]
    """Most frequent values; empty if the chart names all values."""
    tail: list[tuple[str, int]]
    """Rarest values of the first split."""
    notes: str


def distributions(contents: Contents) -> list[Distribution]:
    """Draw a chart for every attribute; one for all conditions if the dataset has given triplets and no labels."""
    shown = [_ranks(counts) if len(counts.values) > BARS else _named(counts) for counts in contents.values]
    if contents.info.given_triplets:
        names = contents.info.attribute_names
        drawn = _bars("triplets by condition", names, contents.triplets, "triplets")
        shown.append(Distribution(drawn, [], [], f"Given: {counted(contents.info.given_triplets, 'triplet')}."))
    return shown


def _named(counts: ValueCounts) -> Distribution:
    title = counts.attribute.replace("_", " ")
    return Distribution(_bars(title, counts.values, counts.images, "images"), [], [], _absent(counts))


def _bars(title: str, names: Sequence[str], counts: PerSplit, what: str) -> Chart:
    """Draw a stacked bar for each name, with the counts of the splits behind it as numbers."""
    total = np.sum(list(counts.values()), axis=0)
    rows = np.arange(len(names))

    def draw(axes: Axes, theme: Theme) -> None:
        start = np.zeros(len(names))
        for split, count in counts.items():
            axes.barh(rows, count, left=start, color=_colour(theme, split), height=0.68)
            start += count
        axes.set_yticks(rows, [_short(name) for name in names])
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
        for row in rows:
            numbers = " · ".join(f"{count[row]:,}" for count in counts.values())
            axes.annotate(numbers, (total[row], row), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.invert_yaxis()
        axes.margins(y=0.5 / len(names))
        # Leave room for the numbers behind the longest bar.
        axes.set_xlim(0, 1.5 * max(total.max(), 1))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(visible=False, axis="y")

    alt = f"{what} of each of {len(names)}: " + "; ".join(
        f"{_short(name)} {', '.join(f'{count[row]:,} {split}' for split, count in counts.items())}"
        for row, name in enumerate(names)
    )
    return _drawn(title, alt, draw, MARGIN + ROW * len(names))


def _colour(theme: Theme, split: str) -> str:
    """Return the colour of a split, the same in every chart and in the legend of the page."""
    return theme.series[SPLITS.index(split)]


def _ranks(counts: ValueCounts) -> Distribution:
    """Draw the images of every value over its rank in the first split, which is train if that has images."""
    first, *others = counts.images
    order = np.argsort(-counts.images[first], kind="stable")
    ranks = np.arange(1, len(order) + 1)

    def draw(axes: Axes, theme: Theme) -> None:
        falling = counts.images[first][order]
        axes.fill_between(
            ranks, falling, LOWEST, where=falling > 0, step="mid", color=_colour(theme, first), alpha=0.22, lw=0
        )
        axes.step(ranks, np.maximum(falling, LOWEST), where="mid", color=_colour(theme, first), linewidth=1.6)
        for split, size in zip(others, DOTS, strict=False):
            count = counts.images[split][order]
            axes.plot(
                ranks[count > 0], count[count > 0], "o", color=_colour(theme, split), markersize=size, markeredgewidth=0
            )
        axes.set_yscale("log")
        axes.set(xlabel=f"rank of the value by its {first} images", ylabel="images", xlim=(0, len(order) + 1))
        axes.set_ylim(LOWEST, 2 * max(int(count.max()) for count in counts.images.values()))
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))

    present = order[counts.images[first][order] > 0]
    head, tail = (
        [(counts.values[value], int(counts.images[first][value])) for value in some]
        for some in (present[:NAMED], present[NAMED:][-NAMED:])
    )
    alt = (
        f"Images of {len(order)} values over their rank, logarithmic; the most frequent has {head[0][1]:,} {first} "
        f"images, {counts.seen(first)} values have any"
        if head
        else f"{len(order)} values, none with {first} images"
    )
    notes = f"Half of the {first} labels belong to the {counts.half(first):,} most frequent of {len(order):,} values. "
    drawn = _drawn(counts.attribute.replace("_", " "), alt, draw, 2.7)
    return Distribution(drawn, head, tail, notes + _absent(counts))


def _absent(counts: ValueCounts) -> str:
    absent = {split: len(counts.values) - counts.seen(split) for split in counts.images}
    missing = [f"{number:,} in {split}" for split, number in absent.items() if number]
    return f"Values without an image: {', '.join(missing)}." if missing else ""


def _drawn(title: str, alt: str, draw: Callable[[Axes, Theme], None], height: float) -> Chart:
    with warnings.catch_warnings():
        # The text stays text, and the browser has the characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return chart(title, alt, draw, (WIDTH, height))


def _short(name: str) -> str:
    return printable(name, LONGEST_NAME)
