"""Images in the layouts of DeepFashion and DARN: a page with one figure per value.

If an attribute has several values, there is a figure for each, side by side (from four on, in two rows). Figure k
wears the k-th value of every attribute; an attribute with fewer values starts again from its first. So every value is
worn, and no figure wears two values of one attribute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data_prep.synthetic.garments.canvas import SUPERSAMPLING, Camera, Canvas, Region
from data_prep.synthetic.garments.darn import draw_darn
from data_prep.synthetic.garments.deepfashion import draw_deepfashion
from data_prep.synthetic.garments.drawing import Drawing, check_seed_and_size
from data_prep.synthetic.garments.figure import HIP, Figure, arms_apart, sample_figure
from data_prep.synthetic.garments.geometry import Pairs, Points, points
from data_prep.synthetic.garments.scene import draw_background, light
from data_prep.synthetic.garments.vocabulary import DRAWN, Parts

MOST_VALUES = 8  # of one attribute in one image
STREAMS = ("background", "camera", "light", "jpeg", "unlabelled")
Wearer = Callable[[Canvas, Figure, Mapping[str, Parts], np.random.Generator, float], dict[str, Points]]
WEARERS: dict[str, Wearer] = {"deepfashion": draw_deepfashion, "darn": draw_darn}


LEGS = 0.76  # fraction of their length that is drawn: the torso has most attributes and gets more of the image


@dataclass(frozen=True)
class CatalogueCamera(Camera):
    """A camera that shortens the figure below the hips."""

    def project(self, outline: Pairs) -> Points:
        """Return body points as fractions of the image's side."""
        shortened = points(outline).copy()
        shortened[:, 1] -= (1.0 - LEGS) * np.maximum(0.0, shortened[:, 1] - HIP)
        return super().project(shortened)


@dataclass(frozen=True)
class Cell:
    """Square in which one figure is painted (in fractions of the image), and the figure's position in it."""

    x: float
    y: float
    side: float
    shift: float  # of the figure from the square's middle, as a fraction of the square
    width: float  # available to the figure, as a fraction of the square


def draw_catalogue(layout: str, labels: Sequence[tuple[str, int]], *, seed: int, size: int) -> Drawing:
    """Draw a `size` x `size` image that shows every label (an attribute and the index of one of its values).

    Equal arguments give equal pixels. Images that differ in one value share everything else: people, cloth,
    the values of attributes without a label, background and light. Raises ValueError for a layout other than
    "deepfashion" and "darn", an attribute or value that it does not have, more than 8 values of one attribute, a
    negative seed, or a size below 16 pixels.
    """
    _check(layout, labels, seed, size)
    kind = list(WEARERS).index(layout)
    rngs = {name: np.random.default_rng([seed, kind, number]) for number, name in enumerate(STREAMS)}
    outfits = _outfits(layout, labels, rngs["unlabelled"])
    camera = _sample_camera(rngs["camera"])
    page = draw_background(rngs["background"], size)
    areas: dict[str, list[Region]] = {attribute: [] for attribute, _ in labels}
    for number, cell in enumerate(_cells(len(outfits))):
        shown = _draw_cell(page, cell, camera, WEARERS[layout], outfits[number], [seed, kind, len(STREAMS), number])
        for attribute, regions in areas.items():
            regions.append(_on_the_page(shown[attribute], cell))
    return Drawing(
        image=light(page, rngs["light"]),
        regions={attribute: _around(regions) for attribute, regions in areas.items()},
        jpeg_quality=int(rngs["jpeg"].integers(60, 96)),
    )


def _check(layout: str, labels: Sequence[tuple[str, int]], seed: int, size: int) -> None:
    if layout not in WEARERS:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(WEARERS)}")
    drawn = DRAWN[layout]
    for attribute, value in labels:
        if attribute not in drawn:
            raise ValueError(f"unknown attribute {attribute!r} of {layout}; choose one of {', '.join(drawn)}")
        if not 0 <= value < len(drawn[attribute]):
            raise ValueError(f"{attribute} has the values 0 to {len(drawn[attribute]) - 1}, not {value}")
    for attribute in drawn:
        if len({value for name, value in labels if name == attribute}) > MOST_VALUES:
            raise ValueError(f"a picture shows at most {MOST_VALUES} values of {attribute}")
    check_seed_and_size(seed, size)


def _outfits(layout: str, labels: Sequence[tuple[str, int]], rng: np.random.Generator) -> list[dict[str, Parts]]:
    """Return one value of every attribute per figure: labelled values in turn, the others at random."""
    wanted = {attribute: list(dict.fromkeys(v for a, v in labels if a == attribute)) for attribute in DRAWN[layout]}
    figures = max(1, *map(len, wanted.values()))
    outfits: list[dict[str, Parts]] = [{} for _ in range(figures)]
    for attribute, values in DRAWN[layout].items():
        # Drawn even if they are not needed, so that a label changes no other attribute's value.
        at_random = rng.integers(len(values), size=MOST_VALUES).tolist()
        chosen = wanted[attribute] or at_random
        for number, outfit in enumerate(outfits):
            outfit[attribute] = values[chosen[number % len(chosen)]]
    return outfits


def _sample_camera(rng: np.random.Generator) -> Camera:
    """Sample a camera that shows the complete figure, broader than it is, because the garments are the subject."""
    return CatalogueCamera(
        top=float(rng.uniform(-0.06, -0.03)),
        bottom=float(rng.uniform(0.88, 0.92)),
        shift=float(rng.uniform(-0.04, 0.04)),
        stretch=float(rng.uniform(1.3, 1.45)),
        tilt=float(rng.normal(0.0, 0.02)),
        turn=float(rng.uniform(-0.012, 0.012)),
        flip=bool(rng.random() < 0.5),
    )


def _cells(figures: int) -> list[Cell]:
    """Return cells for up to three figures side by side at full height, or for more in two rows at half height."""
    rows = 1 if figures <= 3 else 2
    columns = -(-figures // rows)
    side, cells = 1.0 / rows, []
    for number in range(figures):
        row, column = divmod(number, columns)
        middle = (column + 0.5) / columns
        x = min(max(0.0, middle - side / 2), 1.0 - side)
        cells.append(Cell(x, row * side, side, (middle - x) / side - 0.5, min(1.0, 1.0 / columns / side)))
    return cells


def _draw_cell(page: Image.Image, cell: Cell, camera: Camera, wear: Wearer, outfit: Mapping[str, Parts],
               key: list[int]) -> dict[str, Region]:  # fmt: skip
    """Paint one figure into its square of the page; return the regions within the square."""
    side = round(cell.side * page.width)
    corner = (min(round(cell.x * page.width), page.width - side), min(round(cell.y * page.width), page.width - side))
    # Narrow cells have narrower figures with their arms close to the body.
    camera = replace(
        camera,
        shift=cell.shift + camera.shift * cell.width,
        stretch=camera.stretch * float(np.interp(cell.width, (0.33, 0.5, 1.0), (0.68, 0.85, 1.0))),
        flip=camera.flip != bool(key[-1] % 2),
    )
    rng = np.random.default_rng([*key, 0])
    widest = float(np.interp(cell.width, (0.33, 0.5, 1.0), (16.0, 22.0, 36.0)))
    figure = replace(sample_figure(rng), arms=arms_apart(rng, widest))
    canvas = Canvas(page.crop((*corner, corner[0] + side, corner[1] + side)), camera)
    room = 0.46 * cell.width * (camera.bottom - camera.top) / camera.stretch
    areas = wear(canvas, figure, outfit, np.random.default_rng([*key, 1]), room)
    page.paste(canvas.image.reduce(SUPERSAMPLING), corner)
    return {attribute: camera.region(area) for attribute, area in areas.items()}


def _on_the_page(region: Region, cell: Cell) -> Region:
    x0, y0, x1, y1 = (part * cell.side for part in region)
    return Region(cell.x + x0, cell.y + y0, cell.x + x1, cell.y + y1)


def _around(regions: Sequence[Region]) -> Region:
    """Return the box around all regions."""
    corners = np.array(regions)
    return Region(*(float(part) for part in (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0))))
