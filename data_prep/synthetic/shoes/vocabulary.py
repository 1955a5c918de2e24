"""The columns of UT-Zap50K's `meta-data.csv` that are drawn, and the values that drawn samples have."""

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
# What the triplet lists call the four columns, and so the regions of a drawing.
REGION_NAMES: dict[str, str] = {"Category": "class", "Closure": "closure", "Gender": "gender", "HeelHeight": "heel"}
