"""What is drawn: line charts and scatters as SVG, heat over pictures as JPEG, all as data: URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

if TYPE_CHECKING:
    from pipeline.tuning.tune import StudyResult

History = Sequence[tuple[int, float]]
"""(step, value), in order of steps."""
SIZE = (4.4, 2.7)  # inches
HEAT = matplotlib.colormaps["inferno"]
LEGEND_COLOURS = 9
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
"""Shapes of a scatter's groups: nobody has to tell them by colour alone."""


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; they match the page's in the same scheme."""

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
    """What `draw` puts on the axes of a figure of `size` inches, in both colour schemes."""
    light, dark = (_svg(draw, theme, size) for theme in (LIGHT, DARK))
    return Chart(light, dark, alt, title)


def _svg(draw: Callable[[Axes, Theme], None], theme: Theme, size: tuple[float, float]) -> str:
    with matplotlib.rc_context(style(theme)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes, theme)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # The text stays text, in the reader's own font.
    svg = file.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")
    return _data_uri("image/svg+xml", svg.encode())


def style(theme: Theme) -> dict[Any, Any]:
    """What matplotlib draws with."""
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
    """The training losses over steps; names as in MLflow (`train/loss`)."""
    last = ", ".join(f"{_bare(name)} {history[-1][1]:.4f}" for name, history in histories.items())

    def draw(axes: Axes, theme: Theme) -> None:
        for (name, history), colour, dashes in zip(
            histories.items(), theme.series, ("-", "--", ":", "-.", (0, (1, 3))), strict=False
        ):
            axes.plot(*zip(*history, strict=True), dashes, color=colour, label=_bare(name), **_marker(history))
        axes.set(xlabel="step", ylabel="mean over the epoch", xlim=(0, None), ylim=(0, None))
        axes.legend()

    return chart("Training losses", f"Training losses over steps; at the end {last}", draw)


def validation(history: History, name: str = "MAP") -> Chart:
    """MAP, or the score called so, on the validation split over steps, times 100, with its best marked."""
    step, best = max(history, key=lambda point: point[1])

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(*_times_100(history), color=theme.series[0], **_marker(history))
        axes.plot([step], [100 * best], "o", color=theme.series[1], markersize=8)
        axes.annotate(
            f"best {100 * best:.2f}",
            (step, 100 * best),
            xytext=(0, 9),
            textcoords="offset points",
            ha="right" if step > history[0][0] else "left",
        )
        axes.set(xlabel="step", ylabel=f"valid {name} × 100", xlim=(0, None), ylim=(0, 118 * best or 1))

    alt = f"Validation {name} over steps; best {100 * best:.2f} at step {step}, at the end {100 * history[-1][1]:.2f}"
    return chart(f"Validation {name}", alt, draw)


def scatter(title: str, places: np.ndarray, groups: Sequence[str]) -> Chart:
    """Points K×2 without axes, by shape and colour of their groups, the largest group first. At most MARKERS groups."""
    ordered = [name for name, _ in Counter(groups).most_common()]

    def draw(axes: Axes, theme: Theme) -> None:
        for number, (name, marker) in enumerate(zip(ordered, MARKERS, strict=False)):
            mine = places[[group == name for group in groups]]
            colour = theme.series[number % len(theme.series)]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=26, marker=marker, color=colour, alpha=0.75, linewidths=0, label=name
            )
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)

    counts = ", ".join(f"{name} {count}" for name, count in Counter(groups).most_common())
    return chart(title, f"Map of {len(groups)} embeddings under {title}, by value: {counts}", draw, (5.2, 3.2))


def trials(sweep: StudyResult) -> Chart:
    """Every trial's validation MAP over its epochs, the best one in front."""

    def draw(axes: Axes, theme: Theme) -> None:
        for trial in sweep.trials:
            if trial.history:
                axes.plot(
                    *_times_100(trial.history),
                    color=theme.ink,
                    alpha=0.45,
                    linewidth=1.2,
                    **_marker(trial.history),
                )
        best = sweep.best
        label = f"best: trial {best.number}"
        axes.plot(*_times_100(best.history), color=theme.series[1], linewidth=2.6, marker="o", label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="valid MAP × 100")
        axes.legend()

    alt = f"Validation MAP over epochs of {len(sweep.trials)} trials; the best reaches {100 * sweep.best.best:.2f}"
    return chart("Trials over their epochs", alt, draw)


def setting(sweep: StudyResult, key: str) -> Chart:
    """Each trial's best validation MAP over the value it had for one setting; the best trial is a star."""
    scored = [trial for trial in sweep.trials if trial.history and key in trial.setting]
    values = [trial.setting[key] for trial in scored]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

    def draw(axes: Axes, theme: Theme) -> None:
        for trial, value in zip(scored, values, strict=True):
            look = _look(theme, trial is sweep.best)
            axes.scatter([value if numbers else str(value)], [100 * trial.best], linewidths=0, **look)
        if numbers and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=key, ylabel="valid MAP × 100")

    return chart(f"MAP over {key}", f"Best validation MAP of {len(scored)} trials over their {key}", draw)


def _look(theme: Theme, best: bool) -> dict[str, Any]:
    if best:
        return {"s": 150, "marker": "*", "color": theme.series[1], "zorder": 3}
    return {"s": 42, "marker": "o", "color": theme.series[0], "alpha": 0.75}


def _bare(name: str) -> str:
    return name.removeprefix("train/")


def _times_100(history: History) -> tuple[list[int], list[float]]:
    return [step for step, _ in history], [100 * value for _, value in history]


def _marker(history: History) -> dict[str, Any]:
    """Points show where there are few of them."""
    return {"marker": "o", "markersize": 4} if len(history) <= 12 else {}


def heat_over(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 S×S×3: `heat` (S×S, at least 0) in HEAT's colours over the picture in greys, scaled to its maximum."""
    strength = heat / heat.max()
    opacity = (0.2 + 0.5 * strength)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    return ((1 - opacity) * grey + opacity * 255 * HEAT(strength)[..., :3]).round().astype(np.uint8)


def heat_colours() -> list[str]:
    """HEAT from low to high, for the legend."""
    return [matplotlib.colors.to_hex(HEAT(x)) for x in np.linspace(0, 1, LEGEND_COLOURS)]


def jpeg(picture: np.ndarray, side: int) -> str:
    """A uint8 S×S×3 picture as a JPEG data: URI of at most `side` pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, optimize=True)
    return _data_uri("image/jpeg", file.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
