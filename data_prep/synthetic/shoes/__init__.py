"""Pictures of shoes, drawn: UT-Zap50K's four attributes without a photograph."""

from data_prep.synthetic.shoes.contact_sheet import shoe_sheet
from data_prep.synthetic.shoes.drawing import draw_shoe
from data_prep.synthetic.shoes.vocabulary import REGION_NAMES, SHOE_VALUES

__all__ = ["REGION_NAMES", "SHOE_VALUES", "draw_shoe", "shoe_sheet"]
