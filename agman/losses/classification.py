"""The classification loss of branch 1 (paper, equation 7).

Shape suffixes: I images, N attributes.
"""

import torch.nn.functional as F
from torch import Tensor


def labelled_types_bce(logits_in: Tensor, labelled_in: Tensor) -> Tensor:
    """Return equation 7 for images that are used under several attributes at once, as balanced batches do.

    The target is 1 for every attribute under which the image has a label: `labelled_in`, bool.
    """
    return F.binary_cross_entropy_with_logits(logits_in, labelled_in.to(logits_in.dtype))


def attribute_type_bce(logits_in: Tensor, attributes_i: Tensor) -> Tensor:
    """Return equation 7 with w_a = 1: binary cross-entropy of every image's logits against its attribute *type*.

    The target is the one-hot of the type that a triplet was drawn for (which attribute, not its value), for its anchor,
    positive and negative alike. The loss is averaged over elements and images.
    """
    target_in = F.one_hot(attributes_i.long(), logits_in.shape[1]).to(logits_in.dtype)
    return F.binary_cross_entropy_with_logits(logits_in, target_in)
