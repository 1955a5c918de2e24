"""Random changes of training pictures, on the device; what an attribute forbids is not done to its pictures.

Shape suffixes: B images, S pixels a side, N attributes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CROP, JITTER = "crop", "jitter"
CHANGES = (CROP, JITTER)
"""Changes that an attribute can forbid."""


class Augmentation:
    """Changes of each picture by itself, by torchvision's transforms; mirroring is part of a batch.

    Args:
        crop: smallest share of the area that a random resized crop keeps, with an aspect ratio between 3:4 and 4:3;
            None: no crops.
        jitter: brightness, contrast and saturation change by a factor from 1 - jitter to 1 + jitter.
        erasing: probability that a rectangle of 2 to 33 % of the area is erased.
        forbidden: change -> attributes that forbid it, counted from 0: a crop may cut a length off, and jitter change
            a colour. Erasing hides a part of the picture, as an arm would, and is never forbidden.
    """

    def __init__(
        self,
        crop: float | None = None,
        jitter: float = 0.0,
        erasing: float = 0.0,
        forbidden: Mapping[str, Sequence[int]] | None = None,
    ):
        from torchvision.transforms import v2

        self.crop, self.jitter = crop, jitter
        self.forbidden = {change: torch.tensor(list((forbidden or {}).get(change, ()))).long() for change in CHANGES}
        self._crop, self._jitter = v2.RandomResizedCrop, v2.ColorJitter(jitter, jitter, jitter)
        self._erase = v2.RandomErasing(erasing, value=0) if erasing else None

    def __call__(self, images: Tensor, attributes_bn: Tensor) -> Tensor:
        """Return changed pictures, B×3×S×S uint8; `attributes_bn` (bool) are those that a picture is used under.

        Random numbers come from torch's generator, the same ones whatever is forbidden.
        """
        allowed = {}
        for change, attributes in self.forbidden.items():
            known = attributes[attributes < attributes_bn.shape[1]].to(attributes_bn.device)
            allowed[change] = (~attributes_bn[:, known].any(1)).tolist()
        changed = []
        for number, image in enumerate(images):
            if self.crop is not None:
                cropped = self._crop(image.shape[-1], scale=(self.crop, 1.0), antialias=True)(image)
                image = cropped if allowed[CROP][number] else image
            if self.jitter:
                jittered = self._jitter(image)
                image = jittered if allowed[JITTER][number] else image
            changed.append(self._erase(image) if self._erase else image)
        return torch.stack(changed)
