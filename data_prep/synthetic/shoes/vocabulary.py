"""Columns of UT-Zap50K's `meta-data.csv` that are drawn, and the values of drawn samples."""

SHOE_VALUES: dict[str, tuple[str, ...]] = {
    "Category": ("Boots", "Sandals", "Shoes", "Slippers"),
    "Closure": (
        "Lace up", "Slip-On", "Zipper", "Hook and Loop", "Buckle", "Ankle Strap", "Pull-on", "Elastic Gore",
        "Button Loop", "Toggle",
    ),
    "Gender": ("Men", "Women", "Boys", "Girls", "Unisex"),
    "HeelHeight": (
        "Flat", "Under 1in", "1in - 1 3/4in", "2in - 2 3/4in", "3in - 3 3/4in", "4in - 4 3/4in", "5in & over",
    ),
}  # fmt: skip
# Names of the four columns in the triplet lists, and of the regions of a drawing.
REGION_NAMES: dict[str, str] = {"Category": "class", "Closure": "closure", "Gender": "gender", "HeelHeight": "heel"}
