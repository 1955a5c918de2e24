"""The positives and negatives of an anchor among all images of a batch.

Shape suffixes: B triplets, I = 3B images (anchors, positives, negatives), V values of an image.
"""

from typing import NamedTuple

from torch import Tensor


class Pairs(NamedTuple):
    """Masks of every anchor (rows) and every image of the batch (columns). No pair is both, many are neither."""

    positive_bi: Tensor
    """Bool: embedded under the anchor's attribute, with a value of it in common, and another image."""
    negative_bi: Tensor
    """Bool: embedded under the anchor's attribute, with no value of it in common."""


def pairs_of_anchors(attributes_i: Tensor, values_iv: Tensor, photos_i: Tensor) -> Pairs:
    """Return the positives and negatives of a batch, on its device.

    values_iv: every image's values under its own attribute, at least one, and -1 where it has fewer than V.
    photos_i: a number for each photograph. One that is in the batch twice (mirrored, perhaps) is no positive of
    itself, however alike the two are.
    """
    anchors = slice(0, len(attributes_i) // 3)
    same_attribute_bi = attributes_i[anchors, None] == attributes_i
    same_photo_bi = photos_i[anchors, None] == photos_i
    values_biv1 = values_iv[anchors, None, :, None]
    in_common_bi = ((values_biv1 == values_iv[:, None, :]) & (values_biv1 >= 0)).flatten(2).any(2)
    return Pairs(
        positive_bi=same_attribute_bi & in_common_bi & ~same_photo_bi,
        negative_bi=same_attribute_bi & ~in_common_bi,
    )
