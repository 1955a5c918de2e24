"""A network of timm, cut where its maps have the sizes that the models need.

Shape suffixes: B images, C channels, H, W the map's height and width, S = H·W its positions.
"""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from agman.pixels import Pixels
from agman.weights import Weights, cannot_be_had, choose, described, hub_file, load_file, on_meta

PROBE = 64  # side in pixels of the blank image that shows what a network's maps are like
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}
"""Arguments with which timm's transformers take images of any size."""
ONE_STRIDE = (14, 16)
"""Strides of the transformers whose blocks all have maps of one size."""


class Cut(NamedTuple):
    """A network in two parts, and what is known about it."""

    body: TimmBody
    """Network that computes the maps low and mid of images."""
    last: nn.Module | None
    """Blocks that compute branch 1's map from a map like mid; None without `top`."""
    one_stride: bool
    """Whether low is as large as mid, as a plain transformer's."""
    pixels: Pixels
    origin: str | None
    """Where its weights are from."""


class TimmBody(nn.Module):
    """timm's network up to its map mid."""

    def __init__(self, network: Any, low: int, mid: int):
        super().__init__()
        self.network = network
        self.indices = [low, mid]

    def forward(self, images_b3hw: Tensor) -> list[Tensor]:
        """Return the maps low and mid, B×C×H×W."""
        return self.network.forward_intermediates(
            images_b3hw, indices=self.indices, stop_early=True, intermediates_only=True
        )

    def check_side(self, name: str, side: int) -> None:
        """Raise ValueError if the network called `name` cannot compute images of this side."""
        try:
            with torch.no_grad():
                self(torch.zeros(2, 3, side, side))
        except Exception as error:  # each network has its own way to refuse a size
            raise ValueError(_wrong_side(name, side, error)) from error


class LastStage(nn.Module):
    """timm's blocks after the map mid, for maps B×C×H×W whatever order they take their values in."""

    def __init__(self, blocks: list[nn.Module], order: str):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.order = order

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the last map: B×C×H×W, or B×C×S×1 of a plain transformer."""
        if self.order == "BCHW":
            return self.blocks(x_bchw)
        if self.order == "BHWC":
            return self.blocks(x_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.blocks(x_bchw.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]


def cut(name: str, weights: Weights, stride: int, top: bool) -> Cut:
    """Return a network of timm, cut at 1/stride of the image's size; the blocks behind exist only with `top`.

    The map mid is the one at 1/stride (16 or 32), low the one at half of that stride. All blocks of a plain
    transformer have one size: there low is the map after half of the blocks, mid after three quarters; with stride 32,
    after three quarters and all of them.

    On the meta device, weights are fetched or compared, but not loaded. Raises ValueError if the name or the weights
    are unknown, or the network has no such maps; OSError if the weights cannot be fetched or read.
    """
    network, chosen = _network(name, weights)
    low, mid, end = _levels(name, network, stride)
    if top and end is None:
        raise ValueError(f"backbone {name!r} has no map at 1/32 of the image's size for branch 1: take classify=false")
    units = _units(network, *(network.feature_info[index]["module"] for index in (mid, end))) if top else []
    order = _order(name, network, [low, mid], units)
    if top and not order:
        raise ValueError(f"backbone {name!r} has no last stage that can be cut off for branch 1: take classify=false")
    network.prune_intermediate_layers([low, mid], prune_norm=True, prune_head=True)
    one_stride = network.feature_info[low]["reduction"] == network.feature_info[mid]["reduction"]
    last = LastStage(units, order) if top else None
    cfg = network.pretrained_cfg
    return Cut(TimmBody(network.train(), low, mid), last, one_stride, Pixels.of(cfg), described(chosen))


def _network(name: str, weights: Weights) -> tuple[Any, str | Path | None]:
    """Return the whole network but its classifier, and the tag or file that `weights` stands for."""
    plain, _, tag = name.partition(".")
    if tag and timm.is_model(plain):
        raise ValueError(f"backbone {name!r} names its weights: take backbone={plain} weights={tag}")
    if not timm.is_model(name):
        raise ValueError(f"unknown backbone {name!r}; the nearest of timm's: {', '.join(_nearest(name))}")
    cfgs = {key.partition(".")[2]: cfg for key, cfg in get_arch_pretrained_cfgs(name).items() if cfg.hf_hub_id}
    default = timm.get_pretrained_cfg(name)
    tags = sorted(cfgs, key=lambda tag: tag != default.tag)  # timm's own choice first
    chosen = choose(name, weights, tags)
    options = _options(name)
    if not isinstance(chosen, str):
        network = timm.create_model(name, num_classes=0, **options)
        if chosen is not None:
            heads = network.pretrained_cfg.get("classifier") or ()
            load_file(network, name, chosen, (heads,) if isinstance(heads, str) else tuple(heads))
        return network, chosen
    cfg = cfgs[chosen]
    try:
        file = hub_file(cfg)
    except Exception as error:  # whatever the libraries raise that fetch it
        raise cannot_be_had(name, chosen, error) from error
    overlay = {"file": str(file), "custom_load": cfg.custom_load == "hf"}
    tagged = f"{name}.{chosen}"
    pretrained = not on_meta()
    return timm.create_model(tagged, pretrained, pretrained_cfg_overlay=overlay, num_classes=0, **options), chosen


def _nearest(name: str) -> list[str]:
    known = [known for known in timm.list_models() if not known.startswith("test_")]  # timm's tests have their own
    return difflib.get_close_matches(name, known, n=3, cutoff=0.0)


@cache
def _options(name: str) -> dict[str, Any]:
    """Return the options of ANY_SIZE that a network takes; building one on the meta device to ask takes a second."""
    with torch.device("meta"):
        known = inspect.signature(type(timm.create_model(name))).parameters
    return {option: value for option, value in ANY_SIZE.items() if option in known}


def _levels(name: str, network: Any, stride: int) -> tuple[int, int, int | None]:
    """Return the numbers of the maps low and mid among those that the network lists, and of the one after mid."""
    strides = [info["reduction"] for info in network.feature_info]
    if len(strides) >= 4 and len(set(strides)) == 1 and strides[0] in ONE_STRIDE:
        half, most, end = len(strides) // 2 - 1, len(strides) * 3 // 4 - 1, len(strides) - 1
        return (most, end, None) if stride > max(ONE_STRIDE) else (half, most, end)
    at = {of_map: index for index, of_map in enumerate(strides)}  # the last of several
    low = stride // 2
    if low not in at or stride not in at:
        found = ", ".join(f"1/{of_map}" for of_map in sorted(set(strides)))
        raise ValueError(
            f"backbone {name!r} has maps at {found} of the image's size; 1/{low} and 1/{stride} are needed"
        )
    return at[low], at[stride], at.get(2 * stride)


def _units(network: Any, after: str, until: str) -> list[nn.Module]:
    """Return the modules behind the one named `after`, up to the one named `until`; none if there are no such two."""

    def opened(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
        found = []
        for name, child in module.named_children():
            inside = any(mark.startswith(f"{path}{name}.") for mark in (after, until))
            found += opened(child, f"{path}{name}.") if inside else [(f"{path}{name}", child)]
        return found

    listed = opened(network, "")
    names = [name for name, _ in listed]
    if after not in names or until not in names:
        return []
    return [module for _, module in listed[names.index(after) + 1 : names.index(until) + 1]]


def _order(name: str, network: Any, indices: list[int], units: list[nn.Module]) -> str:
    """Return the order of a map's values in front of the last stage's modules, e.g. "BCHW".

    It is empty if they are no chain, each taking only what the one before gives. The network computes a blank image
    for it; raises ValueError if it cannot at this size.
    """
    inputs: list[tuple[Any, ...]] = []
    outputs: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((*args, *kwargs.values()))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    hooks = [unit.register_forward_pre_hook(before, with_kwargs=True) for unit in units]
    hooks += [unit.register_forward_hook(after) for unit in units]
    try:
        with torch.no_grad():
            *_, mid = network.eval().forward_intermediates(
                torch.zeros(1, 3, PROBE, PROBE), indices=indices, intermediates_only=True
            )
    except Exception as error:  # each network has its own way to refuse a size
        raise ValueError(f"{_wrong_side(name, PROBE, error)}; models take images of many sizes") from error
    finally:
        for hook in hooks:
            hook.remove()
    chained = bool(units) and len(inputs) == len(units)
    chained = chained and all(len(args) == 1 and isinstance(args[0], Tensor) for args in inputs)
    if not chained or any(args[0] is not output for args, output in zip(inputs[1:], outputs, strict=False)):
        return ""
    taken = inputs[0][0].shape
    if len(taken) == 3:
        return "BSC"
    return "BCHW" if taken[1] == mid.shape[1] else "BHWC"


def _wrong_side(name: str, side: int, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"backbone {name!r} does not take images of {side} px ({reason})"
