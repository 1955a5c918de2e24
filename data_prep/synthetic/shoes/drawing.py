"""One shoe, drawn from the side on a studio's pale background."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic.garments.canvas import SUPERSAMPLING, Camera, Canvas
from data_prep.synthetic.garments.cloth import Cloth, sample_cloth, tailored
from data_prep.synthetic.garments.drawing import Drawing, check_seed_and_size
from data_prep.synthetic.garments.geometry import Points
from data_prep.synthetic.garments.scene import light
from data_prep.synthetic.shoes.closures import CLOSURES
from data_prep.synthetic.shoes.last import HEEL_HEIGHTS, HIGHEST, Last
from data_prep.synthetic.shoes.uppers import SHAFT, UPPERS, draw_gender, heel_fabric, sole_fabric
from data_prep.synthetic.shoes.vocabulary import REGION_NAMES, SHOE_VALUES

STREAMS = ("values", "camera", "cloth", "cut", "studio", "light", "jpeg")
SOLES = {"Men": 0.075, "Women": 0.02, "Boys": 0.06, "Girls": 0.035, "Unisex": 0.05}
LENGTHS = {"Men": 1.0, "Women": 0.94, "Boys": 0.74, "Girls": 0.7, "Unisex": 0.97}
TOES = {"Women": 0.07}  # pointed
LIGHT = 0.45  # strength of the light's variation, relative to that of garments


@dataclass(frozen=True)
class ShoeDetails:
    """Properties of a shoe that no attribute decides: its cloth and the heel's width."""

    cloth: Cloth
    heel_width: float


def draw_shoe(values: Mapping[str, str], *, seed: int, size: int) -> Drawing:
    """Draw a `size` x `size` image of a shoe with these values, by the names of SHOE_VALUES; others are random.

    Equal arguments give equal pixels, and images that differ in one value share everything else. The regions
    are called "class", "closure", "gender" and "heel", one for each key of `values`. Raises ValueError for an
    unknown key or value, a negative seed, or a size below 16 pixels.
    """
    _check(values, seed, size)
    rng = {name: np.random.default_rng([seed, number]) for number, name in enumerate(STREAMS)}
    random = {key: str(rng["values"].choice(names)) for key, names in SHOE_VALUES.items()}
    shown = random | dict(values)
    details, camera = _sample_details(rng["cloth"], rng["cut"]), _sample_camera(rng["camera"])
    canvas = Canvas(_studio(rng["studio"], camera, size), camera)
    areas = _draw(canvas, shown, details)
    clean = canvas.image.reduce(SUPERSAMPLING)
    return Drawing(
        image=Image.blend(clean, light(clean, rng["light"]), LIGHT),
        regions={REGION_NAMES[key]: camera.region(areas[key]) for key in values},
        jpeg_quality=int(rng["jpeg"].integers(70, 96)),
    )


def _check(values: Mapping[str, str], seed: int, size: int) -> None:
    for key, value in values.items():
        if key not in SHOE_VALUES:
            raise ValueError(f"unknown attribute {key!r} of shoes; choose one of {', '.join(SHOE_VALUES)}")
        if value not in SHOE_VALUES[key]:
            raise ValueError(f"unknown {key} {value!r}; choose one of {', '.join(SHOE_VALUES[key])}")
    check_seed_and_size(seed, size)


def _sample_details(cloth_rng: np.random.Generator, rng: np.random.Generator) -> ShoeDetails:
    """Sample cloth and heel: more plain cloths than garments have, and none that vanishes on a white background."""
    cloth = sample_cloth(cloth_rng, ((250, 250, 250),))
    cloth = replace(cloth, fold=0.4 * cloth.fold, pattern=cloth.pattern if rng.random() < 0.4 else "plain")
    return ShoeDetails(cloth, heel_width=float(rng.uniform(0.06, 0.2)))


def _sample_camera(rng: np.random.Generator) -> Camera:
    """Sample a camera; the toe points to the left, as in the dataset's catalogue."""
    middle, side = rng.uniform(-0.4, -0.36), rng.uniform(1.16, 1.3)
    return Camera(
        top=float(middle - side / 2),
        bottom=float(middle + side / 2),
        shift=float(rng.uniform(-0.05, 0.05)),
        stretch=float(rng.uniform(0.94, 1.06)),
        tilt=float(rng.normal(0.0, 0.03)),
        turn=0.0,
        flip=True,
    )


def _studio(rng: np.random.Generator, camera: Camera, size: int) -> Image.Image:
    """Draw an almost white background, a little darker towards one side, with the shoe's soft shadow."""
    corners = rng.integers(240, 256, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((size, size), Image.Resampling.BICUBIC)
    (x0, y0), (x1, y1) = np.sort(camera.project([(-0.5, -0.04), (0.5, 0.07)]), axis=0) * size
    ImageDraw.Draw(image).ellipse((x0, y0, x1, y1), fill=(int(rng.integers(150, 215)),) * 3)
    return image.filter(ImageFilter.BoxBlur(size * float(rng.uniform(0.01, 0.03))))


def _draw(canvas: Canvas, shown: Mapping[str, str], details: ShoeDetails) -> dict[str, Points]:
    """Paint the shoe from the ground up; return each attribute's area."""
    category, gender = shown["Category"], shown["Gender"]
    last = Last(HEEL_HEIGHTS[shown["HeelHeight"]], SOLES[gender], LENGTHS[gender], TOES.get(gender, 0.0))
    upper = tailored(details.cloth, canvas.side)
    sole = sole_fabric(gender, upper)
    if last.heel:
        canvas.fill(last.heel_block(details.heel_width), heel_fabric(sole), edge=0.007)
    UPPERS[category](canvas, last, upper)
    canvas.fill(last.outsole(), sole, edge=0.007)
    draw_gender(canvas, last, gender)
    CLOSURES[shown["Closure"]](canvas, last, category)
    return _areas(last, category)


def _areas(last: Last, category: str) -> dict[str, Points]:
    """Return each attribute's area; that of the heel covers heels of all heights."""
    lift = -float(last.insole(-0.5))
    top = SHAFT - 0.1 if category == "Boots" else lift - 0.42
    shoe = last.placed([(-0.54, top), (0.55, 0.02)])
    return {
        "Category": shoe,
        "Closure": last.placed([(-0.54, top), (0.27, min(-last.sole, lift / 2))]),
        "Gender": shoe,
        "HeelHeight": last.placed([(-0.54, -HIGHEST - last.sole - 0.08), (0.2, 0.02)]),
    }
