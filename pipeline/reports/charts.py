"""Charts as SVG, heat maps over images as JPEG, both as data: URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

History = Sequence[tuple[int, float]]
"""(step, value) pairs in the order of the steps."""
SIZE = (4.4, 2.7)  # inches
HEAT = matplotlib.colormaps["inferno"]
LEGEND_COLOURS = 9
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
"""Markers of a scatter chart's groups, which are therefore not distinguished by colour alone."""


@dataclass(frozen=True)
class Theme:
    """Colours of a chart, which match the page's colours in the same scheme."""

    ink: str
    grid: str
    series: tuple[str, str, str, str, str]


LIGHT = Theme(ink="#565d69", grid="#e7e3dc", series=("#2b5c8a", "#b3541e", "#5f7a2c", "#7b4b94", "#9a6b00"))
DARK = Theme(ink="#a9afba", grid="#30343c", series=("#8cb8e6", "#f0a06a", "#b3cf7a", "#c9a3e0", "#e6c25c"))


@dataclass(frozen=True)
class Chart:
    """One chart in two colour schemes, as SVG data: URIs."""

    light: str
    dark: str
    alt: str
    title: str


def chart(title: str, alt: str, draw: Callable[[Axes, Theme], None], size: tuple[float, float] = SIZE) -> Chart:
    """Draw a chart of `size` inches in both colour schemes; `draw` is called with the axes and the colours."""
    light, dark = (_svg(draw, theme, size) for theme in (LIGHT, DARK))
    return Chart(light, dark, alt, title)


def _svg(draw: Callable[[Axes, Theme], None], theme: Theme, size: tuple[float, float]) -> str:
    with matplotlib.rc_context(style(theme)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes, theme)
        mark_single_points(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # Text stays text, in the font of the reader's system.
    svg = file.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")
    return data_uri("image/svg+xml", svg.encode())


def mark_single_points(figure: Figure) -> None:
    """Give curves of a single point a marker: a line through one point is nothing."""
    for line in (line for axes in figure.axes for line in axes.get_lines()):
        if len(line.get_xdata()) == 1 and line.get_marker() in ("None", None, ""):  # type: ignore[arg-type]
            line.set_marker("o")


def style(theme: Theme) -> dict[Any, Any]:
    """Return matplotlib's settings for a theme."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "agman",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "lines.linewidth": 2,
    }


def losses(histories: Mapping[str, History]) -> Chart:
    """Draw the training losses over steps; names are those of MLflow (`train/loss`)."""
    last = ", ".join(f"{_bare(name)} {history[-1][1]:.4f}" for name, history in histories.items())

    def draw(axes: Axes, theme: Theme) -> None:
        for (name, history), colour, dashes in zip(
            histories.items(), theme.series, ("-", "--", ":", "-.", (0, (1, 3))), strict=False
        ):
            axes.plot(*zip(*history, strict=True), dashes, color=colour, label=_bare(name), **marker_of(history))
        axes.set(xlabel="step", ylabel="mean over the epoch", xlim=(0, None), ylim=(0, None))
        axes.legend()

    return chart("Training losses", f"Training losses over steps; at the end {last}", draw)


def validation(history: History, name: str = "MAP", chance: float | None = None) -> Chart:
    """Draw the validation score called `name`, times 100, over steps, and mark its maximum and chance."""
    step, best = max(history, key=lambda point: point[1])

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(*times_100(history), color=theme.series[0], **marker_of(history))
        axes.plot([step], [100 * best], "o", color=theme.series[1], markersize=8)
        axes.annotate(
            f"best {100 * best:.2f}",
            (step, 100 * best),
            xytext=(0, 9),
            textcoords="offset points",
            ha="right" if step > history[0][0] else "left",
        )
        show_chance(axes, theme, chance)
        top = 118 * max(best, chance or 0)
        axes.set(xlabel="step", ylabel=f"valid {name} × 100", xlim=(0, None), ylim=(0, top or 1))

    alt = f"Validation {name} over steps; best {100 * best:.2f} at step {step}, at the end {100 * history[-1][1]:.2f}"
    alt += "" if chance is None else f", chance {100 * chance:.2f}"
    return chart(f"Validation {name}", alt, draw)


def scatter(title: str, points: np.ndarray, groups: Sequence[str]) -> Chart:
    """Draw points (K×2) without axes, with a marker and colour for each group (at most len(MARKERS) groups)."""
    ordered = [name for name, _ in Counter(groups).most_common()]

    def draw(axes: Axes, theme: Theme) -> None:
        for number, (name, marker) in enumerate(zip(ordered, MARKERS, strict=False)):
            mine = points[[group == name for group in groups]]
            colour = theme.series[number % len(theme.series)]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=26, marker=marker, color=colour, alpha=0.75, linewidths=0, label=name
            )
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    counts = ", ".join(f"{name} {count}" for name, count in Counter(groups).most_common())
    return chart(title, f"Map of {len(groups)} embeddings under {title}, by value: {counts}", draw, (5.2, 3.2))


def show_chance(axes: Axes, theme: Theme, chance: float | None) -> None:
    """Draw chance, times 100, as a dotted line across the axes; nothing if it is unknown."""
    if chance is not None:
        axes.axhline(100 * chance, color=theme.ink, linestyle=":", linewidth=1.2)
        axes.text(1, 100 * chance, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)


def _bare(name: str) -> str:
    return name.removeprefix("train/")


def times_100(history: History) -> tuple[list[int], list[float]]:
    """Return the steps, and the values times 100."""
    return [step for step, _ in history], [100 * value for _, value in history]


def marker_of(history: History) -> dict[str, Any]:
    """Return the style that shows single points, if they are few."""
    return {"marker": "o", "markersize": 4} if len(history) <= 12 else {}


def heat_over(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return `heat` (S×S, ≥ 0, scaled to its maximum) in the colours of HEAT over the grey image, uint8 S×S×3."""
    strength = heat / heat.max()
    opacity = (0.2 + 0.5 * strength)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    return ((1 - opacity) * grey + opacity * 255 * HEAT(strength)[..., :3]).round().astype(np.uint8)


def heat_colours() -> list[str]:
    """Return the colours of HEAT from low to high, for the legend."""
    return [matplotlib.colors.to_hex(HEAT(x)) for x in np.linspace(0, 1, LEGEND_COLOURS)]


def jpeg(picture: np.ndarray, side: int) -> str:
    """Encode an image (uint8 H×W×3) as a JPEG data: URI; its longer side has at most `side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, optimize=True)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """Return data of this media type as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
