"""A page of drawings for looking at: one row per value of an attribute."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from data_prep.layouts.catalogue_vocabulary import DARN, DEEPFASHION
from data_prep.layouts.fashionai_vocabulary import ATTRIBUTES
from data_prep.synthetic.garments.catalogue import draw_catalogue
from data_prep.synthetic.garments.drawing import Drawing, draw

LABEL_WIDTH = 110  # pixels
LABEL_LETTERS = 17  # that fit into it


def contact_sheet(attribute: str, *, size: int = 112, columns: int = 8, seed: int = 0) -> Image.Image:
    """`columns` drawings of every value of FashionAI's `attribute`, each `size` pixels wide, in named rows.

    Every drawing has a seed of its own: no two show the same person. Raises ValueError as `draw` does.
    """
    names = ATTRIBUTES.get(attribute, ("",))
    return page(names, lambda value, number: draw(attribute, value, seed=seed + number, size=size), size, columns)


def catalogue_sheet(layout: str, attribute: str, *, rows: int = 12, size: int = 112, columns: int = 8,
                    seed: int = 0) -> Image.Image:  # fmt: skip
    """The same for an attribute of "deepfashion" or "darn": `rows` of its values, evenly spread over all of them.

    Raises ValueError as `draw_catalogue` does.
    """
    names = {"deepfashion": DEEPFASHION, "darn": DARN}.get(layout, {}).get(attribute, ("",))
    values = np.linspace(0, len(names) - 1, min(rows, len(names))).round().astype(int).tolist()

    def drawn(row: int, number: int) -> Drawing:
        return draw_catalogue(layout, [(attribute, values[row])], seed=seed + number, size=size)

    return page([names[value] for value in values], drawn, size, columns)


def page(names: Sequence[str], drawn: Callable[[int, int], Drawing], size: int, columns: int) -> Image.Image:
    """A row of `columns` drawings per name; `drawn` makes one from its row and its number on the page."""
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * size, len(names) * size), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        label = textwrap.fill(name, LABEL_LETTERS)
        pen.text((6, row * size + size // 2 - 6 * (label.count("\n") + 1)), label, fill="black")
        for column in range(columns):
            drawing = drawn(row, row * columns + column)
            sheet.paste(drawing.image, (LABEL_WIDTH + column * size, row * size))
    return sheet
