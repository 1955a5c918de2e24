"""Random changes of pictures: which happen, to which pictures, and from which random numbers."""

from __future__ import annotations

import torch

from agman.augmentation import Augmentation

USED = torch.tensor([[True, False, False], [False, True, False], [True, True, True], [False, False, True]])
"""Attributes of four pictures."""


def pictures() -> torch.Tensor:
    return torch.randint(256, (4, 3, 24, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def changed(seed: int = 3, **options: object) -> list[bool]:
    """Return which pictures are changed."""
    torch.manual_seed(seed)
    given = pictures()
    result = Augmentation(**options)(given.clone(), USED)
    assert result.shape == given.shape and result.dtype == torch.uint8
    return (result != given).flatten(1).any(1).tolist()


def test_a_picture_is_not_changed_in_a_way_that_one_of_its_attributes_forbids() -> None:
    assert changed(crop=0.3) == changed(jitter=0.5) == changed(erasing=1.0) == [True] * 4
    assert changed(crop=0.3, forbidden={"crop": [1]}) == [True, False, False, True]
    assert changed(jitter=0.5, forbidden={"jitter": [0]}) == [False, True, False, True]
    assert changed(jitter=0.5, forbidden={"crop": [0, 1, 2]}) == [True] * 4
    assert changed(crop=0.3, forbidden={"crop": [0, 5]}) == [False, True, False, True]  # 5 is not in this batch


def test_what_is_forbidden_moves_no_random_number() -> None:
    results = []
    for forbidden in ({}, {"crop": [1]}):
        torch.manual_seed(3)
        results.append(Augmentation(crop=0.3, jitter=0.2, erasing=0.5, forbidden=forbidden)(pictures(), USED))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][3], results[1][3])
    assert not torch.equal(results[0][1], results[1][1])


def test_an_erased_rectangle_is_black() -> None:
    torch.manual_seed(0)
    given = pictures().clamp(min=1)
    erased = (Augmentation(erasing=1.0)(given, USED) == 0).all(1)
    share = erased.float().mean((1, 2))
    assert (share > 0.01).all() and (share < 0.4).all()
