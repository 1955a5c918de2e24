"""FashionAI's vocabulary: eight attributes and the names of their 54 values, in the official order."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skirt_length": ("Invisible", "Short", "Knee", "Midi", "Ankle", "Floor"),
    "sleeve_length": (
        "Invisible", "Sleeveless", "Cup", "Short", "Elbow", "3-4", "Wrist", "Long", "Extra Long",
    ),
    "coat_length": ("Invisible", "High Waist", "Regular", "Long", "Micro", "Knee", "Midi", "Ankle&Floor"),
    "pant_length": ("Invisible", "Short", "Mid", "3-4", "Cropped", "Full"),
    "collar_design": ("Invisible", "Shirt", "Peter Pan", "Puritan", "Rib"),
    "lapel_design": ("Invisible", "Notched", "Collarless", "Shawl", "Plus Size Shawl"),
    "neckline_design": (
        "Invisible", "Strapless", "Deep V", "Straight", "V", "Square", "Off Shoulder", "Round", "Sweetheart",
        "One Shoulder",
    ),
    "neck_design": ("Invisible", "Turtle", "Ruffle Semi-High", "Low Turtle", "Draped"),
}  # fmt: skip
