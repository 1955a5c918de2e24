"""One labelled image: everything is sampled first, then painted from back to front."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.synthetic.garments import figure as body
from data_prep.synthetic.garments.canvas import SUPERSAMPLING, Camera, Canvas, Region
from data_prep.synthetic.garments.cloth import sample_cloth, tailored
from data_prep.synthetic.garments.figure import Figure, draw_arm, draw_behind, draw_head, sample_figure
from data_prep.synthetic.garments.geometry import Points
from data_prep.synthetic.garments.lengths import Cut, draw_coat, draw_pants, draw_skirt, draw_sleeve, sample_cut
from data_prep.synthetic.garments.occlusion import AREAS, draw_cover, framing, sample_occlusion
from data_prep.synthetic.garments.outfit import Outfit, sample_outfit
from data_prep.synthetic.garments.scene import draw_background, draw_foreground, light
from data_prep.synthetic.garments.tops import (
    CLOSED_EDGE,
    COWL_EDGE,
    NECKLINES,
    draw_bodice,
    draw_collar,
    draw_lapel,
    draw_neck,
    draw_neckline,
    draw_placket,
)

MIN_SIZE = 16  # pixels
INVISIBLE = 0
# One stream of random numbers per subject: one more draw in one of them changes nothing in the others.
# Only "shape" depends on the value.
STREAMS = ("background", "camera", "figure", "cut", "outfit", "cloth", "bystanders", "light", "jpeg", "shape")


@dataclass(frozen=True)
class Drawing:
    """An image, the region of each attribute that it shows, and the JPEG quality to store it with (60-95)."""

    image: Image.Image
    regions: dict[str, Region]
    jpeg_quality: int


def draw(attribute: str, value: int, *, seed: int, size: int) -> Drawing:
    """Draw a `size` x `size` image in which `attribute` has the value with this index.

    Equal arguments give equal pixels. Drawings that differ only in `value` share everything else: person,
    cloth, background and light. Raises ValueError for an attribute or value that FashionAI does not have, a
    negative seed, or a size below 16 pixels.
    """
    _check(attribute, value, seed, size)
    rng = _streams(attribute, value, seed)
    occlusion = sample_occlusion(attribute, rng["shape"]) if value == INVISIBLE else None
    camera = _sample_camera(attribute, rng["camera"])
    if occlusion == "crop":
        camera = framing(camera, attribute, rng["shape"])
    figure, cut = sample_figure(rng["figure"]), sample_cut(rng["cut"])
    names = ATTRIBUTES[attribute]
    name = str(rng["shape"].choice(names[1:])) if occlusion else names[value]
    outfit = sample_outfit(attribute, name, rng["outfit"], rng["cloth"], figure, size * SUPERSAMPLING)

    canvas = Canvas(draw_background(rng["background"], size), camera)
    areas = _draw_person(canvas, figure, cut, outfit)
    draw_foreground(canvas, rng["bystanders"], AREAS[attribute])
    if occlusion and occlusion != "crop":
        cover = tailored(sample_cloth(rng["shape"], (figure.skin.colour, outfit.top.colour)), canvas.side)
        draw_cover(canvas, occlusion, attribute, figure, cover, rng["shape"])
    if occlusion:
        areas[attribute] = AREAS[attribute]
    return Drawing(
        image=light(canvas.image.reduce(SUPERSAMPLING), rng["light"]),
        regions=_regions(camera, areas, attribute, covered=occlusion is not None),
        jpeg_quality=int(rng["jpeg"].integers(60, 96)),
    )


def _check(attribute: str, value: int, seed: int, size: int) -> None:
    if attribute not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {attribute!r}; choose one of {', '.join(ATTRIBUTES)}")
    if not 0 <= value < len(ATTRIBUTES[attribute]):
        raise ValueError(f"{attribute} has the values 0 to {len(ATTRIBUTES[attribute]) - 1}, not {value}")
    check_seed_and_size(seed, size)


def check_seed_and_size(seed: int, size: int) -> None:
    """Raise ValueError if the seed is negative or the size is below MIN_SIZE."""
    if seed < 0:
        raise ValueError(f"the seed must not be negative, it is {seed}")
    if size < MIN_SIZE:
        raise ValueError(f"the size must be at least {MIN_SIZE} pixels, it is {size}")


def _streams(attribute: str, value: int, seed: int) -> dict[str, np.random.Generator]:
    kind = list(ATTRIBUTES).index(attribute)
    keys = {name: [seed, kind, number] for number, name in enumerate(STREAMS)}
    keys["shape"].append(value)
    return {name: np.random.default_rng(key) for name, key in keys.items()}


# Ranges of the window's top and bottom, in body heights: lengths show most of the figure, collars and necks the
# upper body, as photographs of them do.
WINDOWS = {
    "skirt_length": ((-0.06, 0.22), (1.03, 1.12)),
    "sleeve_length": ((-0.02, 0.11), (0.61, 0.72)),
    "coat_length": ((-0.05, 0.09), (1.02, 1.07)),
    "pant_length": ((-0.06, 0.28), (1.03, 1.12)),
    "collar_design": ((-0.02, 0.10), (0.38, 0.5)),
    "lapel_design": ((-0.02, 0.10), (0.42, 0.56)),
    "neckline_design": ((-0.02, 0.10), (0.41, 0.52)),
    "neck_design": ((-0.02, 0.08), (0.36, 0.46)),
}


def _sample_camera(attribute: str, rng: np.random.Generator) -> Camera:
    tops, bottoms = WINDOWS[attribute]
    wide = rng.uniform(0.0, 0.25) if rng.random() < 0.15 else 0.0
    return Camera(
        top=float(rng.uniform(*tops)),
        bottom=float(rng.uniform(*bottoms) + wide),
        shift=float(rng.uniform(-0.1, 0.1)),
        stretch=float(rng.uniform(0.9, 1.12)),
        tilt=float(rng.normal(0.0, 0.04)),
        turn=float(rng.uniform(-0.018, 0.018)),
        flip=bool(rng.random() < 0.5),
    )


def _draw_person(canvas: Canvas, figure: Figure, cut: Cut, outfit: Outfit) -> dict[str, Points]:
    """Paint the dressed figure from back to front; return each worn attribute's deciding area."""
    draw_behind(canvas, figure)
    areas: dict[str, Points] = {}
    sleeveless = outfit.worn["sleeve_length"] == "Sleeveless"
    if sleeveless:  # straps of the bodice lie over bare shoulders, sleeves over the bodice
        _draw_arms(canvas, figure, cut, outfit)
    if outfit.tucked:
        _draw_top(canvas, cut, outfit)
        areas |= _draw_lower(canvas, figure, cut, outfit)
    else:
        areas |= _draw_lower(canvas, figure, cut, outfit)
        _draw_top(canvas, cut, outfit)
    button = 0.36 + 0.02 * cut.hem_at
    if "coat_length" in outfit.worn:
        areas["coat_length"] = draw_coat(canvas, outfit.coat, cut, outfit.worn["coat_length"], button)
    if not sleeveless:
        _draw_arms(canvas, figure, cut, outfit)
    areas["sleeve_length"] = _arms_area(figure)
    areas |= _draw_neck_area(canvas, cut, outfit, button)
    draw_head(canvas, figure)
    return areas


def _draw_lower(canvas: Canvas, figure: Figure, cut: Cut, outfit: Outfit) -> dict[str, Points]:
    if "skirt_length" in outfit.worn:
        length = outfit.worn["skirt_length"]
        return {"skirt_length": draw_skirt(canvas, figure, outfit.lower, cut, length)}
    return {"pant_length": draw_pants(canvas, figure, outfit.lower, cut, outfit.worn["pant_length"])}


def _draw_top(canvas: Canvas, cut: Cut, outfit: Outfit) -> None:
    hem = body.WAIST + 0.01 if outfit.tucked else body.HIP + 0.02 * cut.hem_at
    draw_bodice(canvas, outfit.top, _upper_edge(cut, outfit), hem)
    if outfit.placket and "neckline_design" not in outfit.worn:
        draw_placket(canvas, outfit.top, hem)


def _upper_edge(cut: Cut, outfit: Outfit) -> Points:
    if "neckline_design" in outfit.worn:
        return NECKLINES[outfit.worn["neckline_design"]](0.006 * cut.hem_at)
    return COWL_EDGE if outfit.worn.get("neck_design") == "Draped" else CLOSED_EDGE


def _draw_arms(canvas: Canvas, figure: Figure, cut: Cut, outfit: Outfit) -> None:
    fabric = outfit.coat if "coat_length" in outfit.worn else outfit.top
    start = 0.16 if outfit.worn.get("neckline_design") == "Off Shoulder" else 0.0
    for arm in figure.arms:
        draw_arm(canvas, figure, arm)
        draw_sleeve(canvas, figure, arm, fabric, cut, outfit.worn["sleeve_length"], start=start)


def _arms_area(figure: Figure) -> Points:
    """Return the box around both arms, whether or not they are covered."""
    joints, margin = np.concatenate(figure.arms), np.array([0.03, 0.04])
    return np.stack([joints.min(axis=0) - margin, joints.max(axis=0) + margin])


def _draw_neck_area(canvas: Canvas, cut: Cut, outfit: Outfit, button: float) -> dict[str, Points]:
    worn, areas = outfit.worn, {}
    if "neckline_design" in worn:
        shape = worn["neckline_design"]
        areas["neckline_design"] = draw_neckline(canvas, outfit.top, shape, _upper_edge(cut, outfit))
    if "neck_design" in worn:
        areas["neck_design"] = draw_neck(canvas, outfit.top, worn["neck_design"])
    if "collar_design" in worn:
        areas["collar_design"] = draw_collar(canvas, outfit.collar, worn["collar_design"])
    if "lapel_design" in worn:
        areas["lapel_design"] = draw_lapel(canvas, outfit.lapel, worn["lapel_design"], button)
    if "coat_length" in worn:
        areas.pop("neckline_design")  # mostly covered by the coat
    return areas


def _regions(camera: Camera, areas: dict[str, Points], attribute: str, *, covered: bool) -> dict[str, Region]:
    """Return the regions of the labelled attribute and of all others that lie mostly inside the image."""
    labelled = camera.region(areas[attribute])
    regions = {attribute: labelled}
    for other, area in areas.items():
        inside, full_area = camera.region(area), np.prod(np.ptp(camera.project(area), axis=0))
        occluded = covered and _overlap(inside, labelled) > 0.2 * _overlap(inside, inside)
        if other != attribute and not occluded and _overlap(inside, inside) > 0.7 * full_area:
            regions[other] = inside
    return regions


def _overlap(one: Region, other: Region) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)
