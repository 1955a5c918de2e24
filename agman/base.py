"""The interface of every model of the registry, for the objective, the engine, checkpoints and serving.

Shape suffixes: B images, A attributes asked of each, N attributes known, K (image, attribute) pairs,
D embedding width, C channels, H, W height and width of the images or of the feature map, S = H·W its positions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agman.backbone import PUBLISHED_STRIDE, Backbone
from agman.pixels import IMAGENET, Pixels

SMALLEST_IMAGE = 32  # pixels a side; a ResNet divides by 32


class Output(NamedTuple):
    """The result of a model's forward pass."""

    embedding: Tensor
    """B×D or, of pairs, K×D; unit length."""
    logits: Tensor | None = None
    """Scores of the attribute types, one row for each image; None for models without a classification branch."""


class RetrievalModel(nn.Module):
    """A model that gives an embedding of unit length for every (image, attribute) pair.

    Images are B×3×H×W, normalised floats, of any size from 32 pixels. Attributes are int64 or int32 numbers, counted
    from 0. Wrong shapes or types raise ValueError. NaN pixels and numbers out of range raise it on the CPU only:
    reading values on a device would make the program wait for it.

    A subclass sets `backbone` and implements `embed` and `maps`. Users call the methods defined here.
    """

    backbone: Backbone
    classify: bool = False
    """Whether forward returns logits."""

    def __init__(self, n_attributes: int, embedding_dim: int, **config: Any):
        """Keep the arguments: `config` holds those beside the two sizes, except for the initial weights.

        Raises ValueError if a size is below 1.
        """
        super().__init__()
        for size, number in (("n_attributes", n_attributes), ("embedding_dim", embedding_dim)):
            if number < 1:
                raise ValueError(f"{size} must be at least 1, not {number}")
        self.n_attributes = n_attributes
        self.embedding_dim = embedding_dim
        self._config: dict[str, Any] = {"n_attributes": n_attributes, "embedding_dim": embedding_dim, **config}

    @property
    def config(self) -> dict[str, Any]:
        """Arguments with which `agman.build` builds a model of equal architecture, for pictures made in the same way.

        What is as published is not named: pictures made as ImageNet's, and stride 16.
        """
        pixels = {} if self.pixels == IMAGENET else {"pixels": self.pixels._asdict()}
        stride = {} if self.backbone.stride == PUBLISHED_STRIDE else {"stride": self.backbone.stride}
        return self._config | stride | pixels

    @property
    def pixels(self) -> Pixels:
        """How pictures are resized and normalised for this model."""
        return self.backbone.pixels

    def features(self, images: Tensor) -> Tensor:
        """Return the map x, B×C×H×W, that all attributes share, from one pass of the backbone; by default mid."""
        return self.backbone(images)

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings of every feature map under each of its A attributes: B×A×D, unit length."""
        raise NotImplementedError

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return how much each position counts for each attribute: B×A×S, every row summing to 1."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `features` of the images and branch 1's logits, B×N, of one pass; None without branch 1."""
        return self.features(images), None

    def forward(self, images: Tensor, attributes: Tensor) -> Output:
        """Embed B images, each under its own one of B attributes."""
        self.check(images, attributes)
        x_bchw, logits_bn = self.encode(images)
        return Output(self.embed(x_bchw, attributes[:, None])[:, 0], logits_bn)

    def forward_pairs(self, images: Tensor, image_index: Tensor, attributes: Tensor) -> Output:
        """Embed K pairs as `embed_pairs` does, from one pass of the backbone; the logits are those of the B images."""
        self._check_pairs(images, image_index, attributes)
        x_bchw, logits_bn = self.encode(images)
        every_bn = torch.arange(self.n_attributes, device=images.device).expand(len(images), -1)
        return Output(self.embed(x_bchw, every_bn)[image_index, attributes], logits_bn)

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed every image under every attribute, B×N×D, from one pass of the backbone."""
        check_images(images)
        every_bn = torch.arange(self.n_attributes, device=images.device).expand(images.shape[0], -1)
        return self.embed(self.features(images), every_bn)

    def embed_pairs(self, images: Tensor, image_index: Tensor, attributes: Tensor) -> Tensor:
        """Embed K pairs, K×D: pair k is image `image_index[k]` of the B images under `attributes[k]`.

        The backbone sees every image once. All N attributes are computed and K pairs picked: for a few dozen
        attributes that costs little beside the backbone, and no feature map is copied.
        """
        self._check_pairs(images, image_index, attributes)
        return self.embed_all(images)[image_index, attributes]

    def attention(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Return the attention of B images under their attributes: maps B×h×w, each summing to 1."""
        self.check(images, attributes)
        x_bchw = self.features(images)
        return self.maps(x_bchw, attributes[:, None])[:, 0].unflatten(-1, x_bchw.shape[2:])

    def _check_pairs(self, images: Tensor, image_index: Tensor, attributes: Tensor) -> None:
        pairs = (image_index.numel(),)
        check_images(images)
        check_indices("image_index", image_index, pairs, len(images))
        check_indices("attributes", attributes, pairs, self.n_attributes)

    def check(self, images: Tensor, attributes: Tensor) -> None:
        """Raise ValueError unless these are images and an attribute for each."""
        check_images(images)
        check_indices("attributes", attributes, (len(images),), self.n_attributes)


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is B×3×H×W of normalised floats; on the CPU, also for NaN and infinity."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor, not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_IMAGE:
        wanted = f"B×3×H×W with H, W >= {SMALLEST_IMAGE}"
        raise ValueError(f"images must be {wanted}, not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be normalised floats, not {images.dtype}")
    if not _can_read_values(images) or torch.isfinite(images.sum()):  # one pass, no mask: a sum keeps any NaN
        return
    broken = torch.nonzero(~torch.isfinite(images).flatten(1).all(1)).flatten().tolist()
    if broken:  # otherwise only the sum overflowed
        raise ValueError(f"images hold NaN or infinite pixels, first in image {broken[0]} of {len(images)}")


def check_indices(name: str, index: Tensor, shape: tuple[int, ...], below: int) -> None:
    """Raise ValueError unless `index` has the shape and an integer type; on the CPU, also unless in 0..below-1."""
    if not isinstance(index, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(index).__name__}")
    if index.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(index.shape)}")
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 or int32, not {index.dtype}")
    if not _can_read_values(index) or not len(index):
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= below:
        raise ValueError(f"{name} must lie in 0..{below - 1}, found {low if low < 0 else high}")


def _can_read_values(tensor: Tensor) -> bool:
    """Return False on a device, where the program would wait, and while tracing, where the graph would break."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
