"""Clothes of a figure: one value name per attribute that is worn, and the fabric of every garment."""

from dataclasses import dataclass, replace

import numpy as np

from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.synthetic.garments.cloth import Fabric, sample_cloth, tailored
from data_prep.synthetic.garments.figure import Figure
from data_prep.synthetic.garments.tops import BARE_SHOULDERS

UPPER_EDGES = ("neckline_design", "neck_design", "collar_design")  # a top has exactly one of them
COATED = ("coat_length", "lapel_design")  # a coat has both


@dataclass(frozen=True)
class Outfit:
    """Values of the attributes that the garments have (`worn`), and the fabrics of the garments."""

    worn: dict[str, str]
    tucked: bool
    placket: bool
    top: Fabric
    lower: Fabric
    coat: Fabric
    collar: Fabric
    lapel: Fabric


def sample_outfit(attribute: str, name: str, rng: np.random.Generator, cloth_rng: np.random.Generator,
                  figure: Figure, side: int) -> Outfit:  # fmt: skip
    """Sample a plausible outfit in which `attribute` has the value `name`.

    The rest does not depend on `name`, except that a bare shoulder has no sleeve.
    """
    worn = {other: str(rng.choice(names[1:])) for other, names in ATTRIBUTES.items()}
    edge = attribute if attribute in UPPER_EDGES else str(rng.choice(UPPER_EDGES))
    lower = (
        attribute if attribute in ("skirt_length", "pant_length") else str(rng.choice(["skirt_length", "pant_length"]))
    )
    with_sleeves = [value for value in ATTRIBUTES["neckline_design"][1:] if value not in BARE_SHOULDERS]
    worn["neckline_design"] = str(rng.choice([value for value in with_sleeves if value != "Off Shoulder"]))
    # A puritan collar would cover the upper end of the sleeves.
    worn["collar_design"] = str(rng.choice(["Shirt", "Peter Pan", "Rib"]))
    if attribute in COATED:
        worn["sleeve_length"] = str(rng.choice(["3-4", "Wrist", "Long", "Long"]))
        # The label is about the coat: the garment under it stays plain.
        worn["neckline_design"], edge = "Round", "neckline_design"
    elif attribute == "neckline_design":
        worn["sleeve_length"] = str(rng.choice([worn["sleeve_length"], "Sleeveless"]))
    worn[attribute] = name
    if edge == "neckline_design" and worn[edge] in BARE_SHOULDERS:
        worn["sleeve_length"] = "Sleeveless"
    kept = {"sleeve_length", edge, lower, *(COATED if attribute in COATED else ())}
    outfit = _sample_cloths(rng, cloth_rng, figure, side)
    return replace(outfit, worn={other: value for other, value in worn.items() if other in kept})


def _sample_cloths(rng: np.random.Generator, cloth_rng: np.random.Generator, figure: Figure, side: int) -> Outfit:
    """Sample fabrics that differ from their neighbours; `worn` stays empty."""
    skin = figure.skin.colour
    top = sample_cloth(cloth_rng, (skin,))
    lower = sample_cloth(cloth_rng, (skin, top.colour, figure.shoe.colour))
    coat = sample_cloth(cloth_rng, (skin, top.colour, lower.colour))
    contrast = tailored(sample_cloth(cloth_rng, (skin, top.colour)), side)
    fabrics = {"top": tailored(top, side), "lower": tailored(lower, side), "coat": tailored(coat, side)}
    tone = float(rng.choice([0.7, 0.85, 1.3]))
    separate = rng.random() < 0.5
    return Outfit(
        worn={},
        tucked=bool(rng.random() < 0.6),
        placket=bool(rng.random() < 0.4),
        collar=contrast if separate else fabrics["top"].toned(tone),
        lapel=contrast if separate else fabrics["coat"].toned(tone),
        **fabrics,
    )
