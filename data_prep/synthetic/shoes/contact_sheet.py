"""A page of shoes for looking at: one row per value of a column of the metadata."""

from PIL import Image

from data_prep.synthetic.garments.contact_sheet import page
from data_prep.synthetic.shoes.drawing import draw_shoe
from data_prep.synthetic.shoes.vocabulary import SHOE_VALUES


def shoe_sheet(key: str, *, size: int = 112, columns: int = 8, seed: int = 0) -> Image.Image:
    """`columns` drawings of every value of `key`, each `size` pixels wide, in rows that name the value.

    Every drawing has a seed of its own. Raises ValueError as `draw_shoe` does.
    """
    names = SHOE_VALUES.get(key, ("",))
    return page(names, lambda row, number: draw_shoe({key: names[row]}, seed=seed + number, size=size), size, columns)
