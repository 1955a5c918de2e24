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


def pairs_of_anchors(attributes_i: Tensor, values_iv: Tensor, image_index_i: Tensor) -> Pairs:
    """Return the positives and negatives of a batch, on its device.

    values_iv holds every image's values under its own attribute, at least one, padded with -1 to V.
    image_index_i holds equal numbers for occurrences of the same image. An image that is in the batch twice
    (mirrored, perhaps) is no positive of itself.
    """
    anchors = slice(0, len(attributes_i) // 3)
    same_attribute_bi = attributes_i[anchors, None] == attributes_i
    same_image_bi = image_index_i[anchors, None] == image_index_i
    values_biv1 = values_iv[anchors, None, :, None]
    in_common_bi = ((values_biv1 == values_iv[:, None, :]) & (values_biv1 >= 0)).flatten(2).any(2)
    return Pairs(
        positive_bi=same_attribute_bi & in_common_bi & ~same_image_bi,
        negative_bi=same_attribute_bi & ~in_common_bi,
    )
