"""Scores of attention maps against the true regions, as pure functions of maps and boxes.

Shape suffixes: B maps, h, w their cells. A box is x0, y0, x1, y1 in [0, 1] of the picture, y downwards; the cell
in row i, column j of a map covers [j/w, (j+1)/w] × [i/h, (i+1)/h].

    mass = Σ over cells of map · (fraction of the cell that lies in the box) / Σ over cells of map
    hit  = whether the centre of the cell with the map's maximum lies in the box

The mass of an even map is the box's area. That is the chance level, also of hits for a random point of the picture.
"""

import torch
from torch import Tensor


def attention_mass(maps_bhw: Tensor, boxes_b4: Tensor) -> Tensor:
    """Return the fraction of each map's mass inside its box, B float64, in [0, 1].

    A map is constant over each of its cells, and the cells are cut exactly at the box's edges: a cell that lies half
    inside counts half. Raises ValueError if shapes are wrong, a map is negative, not finite or all zero, or a box is
    inverted or leaves [0, 1].
    """
    maps_bhw, boxes_b4 = _checked(maps_bhw, boxes_b4)
    x0_b, y0_b, x1_b, y1_b = boxes_b4.unbind(1)
    rows_bh = _covered(y0_b, y1_b, maps_bhw.shape[1])
    columns_bw = _covered(x0_b, x1_b, maps_bhw.shape[2])
    inside_b = torch.einsum("bhw,bh,bw->b", maps_bhw, rows_bh, columns_bw)
    return (inside_b / maps_bhw.sum((1, 2))).clamp(max=1.0)


def pointing_hits(maps_bhw: Tensor, boxes_b4: Tensor) -> Tensor:
    """Return whether each map's maximum lies in its box, B bool: the pointing game.

    The point is the centre of the cell with the maximum; of equal cells, the first, row by row. A point on the box's
    edge is inside. There is no tolerance around the box (the paper allows 15 pixels). Raises ValueError as
    `attention_mass` does.
    (Zhang et al., "Top-Down Neural Attention by Excitation Backprop", IJCV 2018.)
    """
    maps_bhw, boxes_b4 = _checked(maps_bhw, boxes_b4)
    height, width = maps_bhw.shape[1:]
    first_b = maps_bhw.flatten(1).argmax(1)
    x_b, y_b = (first_b % width + 0.5) / width, (first_b // width + 0.5) / height
    x0_b, y0_b, x1_b, y1_b = boxes_b4.unbind(1)
    return (x0_b <= x_b) & (x_b <= x1_b) & (y0_b <= y_b) & (y_b <= y1_b)


def _covered(low_b: Tensor, high_b: Tensor, cells: int) -> Tensor:
    """Return the fraction of each of `cells` equal cells of [0, 1] that lies in [low, high], B×cells."""
    start = torch.arange(cells, device=low_b.device)
    from_bc = (low_b[:, None] * cells).maximum(start)
    to_bc = (high_b[:, None] * cells).minimum(start + 1)
    return (to_bc - from_bc).clamp(min=0)


def _checked(maps_bhw: Tensor, boxes_b4: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float64, on the maps' device."""
    if maps_bhw.ndim != 3 or boxes_b4.shape != (len(maps_bhw), 4):
        shapes = f"{tuple(maps_bhw.shape)} and {tuple(boxes_b4.shape)}"
        raise ValueError(f"maps must be B×h×w and boxes B×4, not {shapes}")
    maps_bhw, boxes_b4 = maps_bhw.double(), boxes_b4.to(maps_bhw.device, torch.float64)
    total_b = maps_bhw.sum((1, 2))
    sound_b = (maps_bhw >= 0).all(2).all(1) & (total_b > 0) & total_b.isfinite()
    if not bool(sound_b.all()):
        number = int((~sound_b).nonzero()[0])
        raise ValueError(f"map {number} must be finite, without negative cells, and have a positive sum")
    x0_b, y0_b, x1_b, y1_b = boxes_b4.unbind(1)
    sound_b = (x0_b >= 0) & (x0_b <= x1_b) & (x1_b <= 1) & (y0_b >= 0) & (y0_b <= y1_b) & (y1_b <= 1)
    if not bool(sound_b.all()):
        number = int((~sound_b).nonzero()[0])
        raise ValueError(f"box {number} is inverted or leaves [0, 1]: x0, y0, x1, y1 = {boxes_b4[number].tolist()}")
    return maps_bhw, boxes_b4
