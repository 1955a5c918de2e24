"""Pictures of clothed figures, drawn: the attributes of FashionAI, DeepFashion and DARN without a photograph."""

from data_prep.layouts.fashionai_vocabulary import ATTRIBUTES
from data_prep.synthetic.garments.canvas import Region
from data_prep.synthetic.garments.catalogue import draw_catalogue
from data_prep.synthetic.garments.contact_sheet import catalogue_sheet, contact_sheet
from data_prep.synthetic.garments.drawing import Drawing, draw

__all__ = ["ATTRIBUTES", "Drawing", "Region", "catalogue_sheet", "contact_sheet", "draw", "draw_catalogue"]
