"""Pictures of clothed figures, drawn: FashionAI's attributes and values without a photograph."""

from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.garments.canvas import Region
from data_prep.garments.contact_sheet import contact_sheet
from data_prep.garments.drawing import Drawing, draw

__all__ = ["ATTRIBUTES", "Drawing", "Region", "contact_sheet", "draw"]
