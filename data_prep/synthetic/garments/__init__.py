"""Drawn images of clothed figures, with the attributes of FashionAI, DeepFashion and DARN."""

from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.synthetic.garments.canvas import Region
from data_prep.synthetic.garments.catalogue import draw_catalogue
from data_prep.synthetic.garments.drawing import Drawing, draw

__all__ = ["ATTRIBUTES", "Drawing", "Region", "draw", "draw_catalogue"]
