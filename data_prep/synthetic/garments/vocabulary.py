"""The values of drawn DeepFashion and DARN samples, in words.

Only drawn samples have these names. The value names of a real dataset come from its own files (DeepFashion's
`list_attr_cloth.txt`, DARN's `meta.json`). The attributes and their numbers of values are the datasets' own.

A value is a tuple of parts, such as ("stripe", "diagonal", "large", "light on dark"). Its name has them in reverse
order: "light on dark large diagonal stripe". The first part varies fastest and is the most conspicuous one, so that
neighbouring values look different.
"""

from itertools import islice, product

Parts = tuple[str, ...]
DIRECTIONS = ("upright", "diagonal")
SCALES = ("large", "small", "medium")
HUES = ("red", "blue", "yellow", "green", "purple", "orange", "cyan", "pink", "lime", "azure")


def _values(*choices: tuple[str, ...], number: int | None = None) -> tuple[Parts, ...]:
    """Return all combinations of the choices, or the first `number`; the first choice varies fastest."""
    backwards = (combination[::-1] for combination in product(*choices[::-1]))
    return tuple(islice(backwards, number))


PRINTS = (
    "stripe", "dot", "check", "zigzag", "flower", "grid", "ring", "wave", "triangle", "cross", "double stripe",
    "brick", "dash",
)  # fmt: skip
WEAVES = (
    "rib", "waffle", "mesh", "quilting", "herringbone", "knit", "basket", "cable", "twill", "crochet", "lace",
    "corduroy", "houndstooth",
)  # fmt: skip
PALETTES = (
    *(f"in vivid {hue}" for hue in HUES), "in black and white", *(f"in pale {hue}" for hue in HUES), "in brown",
    "in grey",
)  # fmt: skip
COLLARS = (
    "round neck", "v neck", "turtleneck", "shirt collar", "peter pan collar", "notched lapel", "hood", "square neck",
    "cowl", "sailor collar", "shawl lapel", "boat neck", "puritan collar", "bow", "deep v neck", "rib collar", "jabot",
    "sweetheart neck", "wide shawl lapel", "keyhole", "ruffled neck", "scoop neck", "bound edge", "slanted neck",
    "low turtleneck", "zipped collar",
)  # fmt: skip
SLEEVE_SHAPES = (
    "straight", "bell", "puffed shoulder", "balloon", "cuffed", "tiered", "leg of mutton", "open shoulder", "fitted",
    "lantern", "side stripe", "banded", "trumpet", "slashed", "batwing", "frilled hem", "two tone",
)  # fmt: skip
SILHOUETTES = (
    "straight cut", "a-line", "fitted waist", "boxy", "cocoon", "peplum", "trapeze", "slanted hem", "dropped waist",
    "side slits", "hourglass",
)  # fmt: skip
BUTTONS = (
    "no buttons", "one button", "two buttons", "three buttons", "five buttons", "two by one buttons",
    "two by two buttons", "two by three buttons", "two by five buttons", "slanted buttons", "zip", "toggles",
    "one big button",
)  # fmt: skip
SLEEVE_LENGTHS = (
    "cap sleeve", "short sleeve", "elbow sleeve", "below-elbow sleeve", "three-quarter sleeve", "bracelet sleeve",
    "wrist sleeve", "over-long sleeve",
)  # fmt: skip
LENGTHS = ("hip length", "seat length", "thigh length", "knee length", "calf length", "midi length", "ankle length")

DRAWN: dict[str, dict[str, tuple[Parts, ...]]] = {
    "deepfashion": {
        "texture-related": _values(PRINTS, DIRECTIONS, SCALES, ("light on dark", "dark on light")),
        "fabric-related": _values(WEAVES, SCALES, ("matte", "silky", "glittering"), DIRECTIONS, number=218),
        "shape-related": _values(
            ("pencil skirt", "wide pants", "flared skirt", "slim pants"),
            ("short", "long", "mid"),
            ("sleeveless", "long-sleeved", "elbow-sleeved", "short-sleeved", "three-quarter-sleeved"),
            ("cropped", "hip-length", "waist-length"),
        ),
        "part-related": _values(
            ("v neck", "shirt collar", "turtleneck", "square neck", "peter pan collar", "round neck"),
            ("no belt", "wide belt", "bow belt", "buckled belt", "thin belt", "chain belt"),
            ("plain front", "heart print", "pocket", "star print", "bar print", "ring print"),
        ),
        "style-related": _values(
            PALETTES, ("sun hat", "bareheaded", "beret", "cap", "hair bow"), ("handbag", "no bag")
        ),
    },
    "darn": {
        "clothes category": _values(
            ("plain front", "chest pocket", "hip pockets", "pouch pocket", "side panels"),
            ("straight hem", "ribbed hem", "fringed hem", "banded hem"),
        ),
        "clothes button": _values(BUTTONS),
        "clothes color": (
            *_values(HUES, ("vivid", "pale", "deep", "dusty", "dark")),
            *_values(("white", "light grey", "middle grey", "dark grey", "black")),
        ),
        "clothes length": _values(LENGTHS),
        "clothes pattern": (("plain",), *_values(PRINTS[:9], SCALES)),
        "clothes shape": _values(SILHOUETTES),
        "collar shape": _values(COLLARS),
        "sleeve length": _values(SLEEVE_LENGTHS),
        "sleeve shape": _values(SLEEVE_SHAPES),
    },
}  # fmt: skip


def _named(layout: str) -> dict[str, tuple[str, ...]]:
    return {attribute: tuple(" ".join(parts[::-1]) for parts in values) for attribute, values in DRAWN[layout].items()}


DEEPFASHION: dict[str, tuple[str, ...]] = _named("deepfashion")
DARN: dict[str, tuple[str, ...]] = _named("darn")
