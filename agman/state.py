"""State dicts: read a file of tensors, and say where two state dicts differ.

Nothing here unpickles code: `.safetensors` files hold tensors alone, `.pth` files are read with
`weights_only=True`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file, on the CPU; ValueError for any other content."""
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{path}: expected a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no file of tensors the readers raise nearly anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable file of tensors ({first_line})") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: expected a plain state dict (names to tensors)")
    return dict(tensors)


def first_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first key in which `found` does not fit `expected`, with both shapes; None if everything fits."""
    for key, tensor in expected.items():
        if key not in found:
            return f"{key}: expected shape {tuple(tensor.shape)}, found nothing"
        if found[key].shape != tensor.shape:
            return f"{key}: expected shape {tuple(tensor.shape)}, found {tuple(found[key].shape)}"
    for key, tensor in found.items():
        if key not in expected:
            return f"{key}: expected nothing, found shape {tuple(tensor.shape)}"
    return None
