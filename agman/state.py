"""State dicts: read a file of tensors, find where two state dicts differ, and the digest of a model's weights.

Nothing here unpickles code: `.safetensors` files hold tensors alone, all others are read with
`weights_only=True`.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# A metric beside the state dict is often a numpy number. These functions make one from bytes and run no code; their
# names are those of numpy 1 and 2.
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU: a plain state dict, or a checkpoint with one as its `state_dict`.

    Raises ValueError for any other content or suffix, and for a file that would run code when read.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a file with one of the endings {', '.join(SUFFIXES)}")
    content: object
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(NUMPY_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than tensors and numbers, or is damaged; code is never unpickled"
        ) from error
    except Exception as error:  # on other files the readers raise nearly anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable file of tensors ({first_line[:120]})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a plain state dict (names to tensors)")
    return dict(content)


def first_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return the first key in which `found` does not fit `expected`, with both shapes; None if everything fits."""
    for key, tensor in expected.items():
        if key not in found:
            return f"{key}: expected shape {tuple(tensor.shape)}, found nothing"
        if found[key].shape != tensor.shape:
            return f"{key}: expected shape {tuple(tensor.shape)}, found {tuple(found[key].shape)}"
    for key, tensor in found.items():
        if key not in expected:
            return f"{key}: expected nothing, found shape {tuple(tensor.shape)}"
    return None


def weights_digest(build: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a model's build and weights: equal for one model, whatever file it was loaded from."""
    total = hashlib.sha256(json.dumps(build, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        array = tensor.cpu().contiguous().numpy()
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
