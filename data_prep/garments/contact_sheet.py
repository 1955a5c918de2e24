"""A page of drawings for looking at: one row per value of an attribute."""

from PIL import Image, ImageDraw

from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.garments.drawing import draw

LABEL_WIDTH = 110  # pixels


def contact_sheet(attribute: str, *, size: int = 112, columns: int = 8, seed: int = 0) -> Image.Image:
    """`columns` drawings of every value of `attribute`, each `size` pixels wide, in rows that name the value.

    Every drawing has a seed of its own: no two show the same person. Raises ValueError as `draw` does.
    """
    names = ATTRIBUTES.get(attribute, ("",))
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * size, len(names) * size), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        pen.text((6, row * size + size // 2 - 6), name, fill="black")
        for column in range(columns):
            drawing = draw(attribute, row, seed=seed + row * columns + column, size=size)
            sheet.paste(drawing.image, (LABEL_WIDTH + column * size, row * size))
    return sheet
