"""Drawn images of shoes, with UT-Zap50K's four attributes."""

from data_prep.synthetic.shoes.drawing import draw_shoe
from data_prep.synthetic.shoes.vocabulary import REGION_NAMES, SHOE_VALUES

__all__ = ["REGION_NAMES", "SHOE_VALUES", "draw_shoe"]
