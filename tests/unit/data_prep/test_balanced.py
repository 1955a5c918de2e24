"""Balanced batches: what is drawn, under which labels, and that they are the same on any number of workers."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.balanced import BalancedSampler, undrawable


def labels_of(images: int = 101, seed: int = 1) -> pd.DataFrame:
    """Return labels of three attributes: 0 has a common and two rare values, 1 up to three values an image, 2 gaps."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in rng.permutation(np.arange(images) * 7 + 3).tolist():
        rows.append((image, 0, int(rng.choice([0, 1, 2], p=[0.9, 0.05, 0.05]))))
        rows += [(image, 1, int(value)) for value in rng.choice(5, rng.integers(1, 4), replace=False)]
        if rng.random() < 0.3:
            rows.append((image, 2, int(rng.integers(0, 4))))
    return pd.DataFrame(rows, columns=["image_id", "attribute", "value"])


LABELS = labels_of()
ARGUMENTS: dict[str, Any] = {"batch_size": 12, "images_per_value": 3, "seed": 5}


def plans(epoch: int = 0, **arguments: Any) -> list[dict[str, Any]]:
    return list(BalancedSampler(LABELS).plan_epoch(**ARGUMENTS | {"epoch": epoch, "micro_batches": 4} | arguments))


def test_an_epoch_has_as_many_images_as_the_table_in_equal_batches_without_repeats() -> None:
    batches = plans()
    sizes = [len(plan["image_ids"]) for plan in batches]
    assert sum(sizes) == 101 and len(sizes) == 9 and set(sizes) == {11, 12}
    for plan in batches:
        assert len(set(plan["image_ids"].tolist())) == len(plan["image_ids"]) == plan["global_size"]
        assert (plan["begin"], plan["bounds"][-1], len(plan["flip"])) == (0, plan["global_size"], plan["global_size"])


def test_every_image_is_used_under_all_its_labels() -> None:
    known = {key: sorted(of_pair["value"]) for key, of_pair in LABELS.groupby(["image_id", "attribute"])}
    for plan in plans():
        used = {}
        assert (torch.diff(plan["image_index"]) >= 0).all()
        for row, attribute, values in zip(plan["image_index"], plan["attributes"], plan["values"], strict=True):
            used[int(plan["image_ids"][row]), int(attribute)] = [v for v in values.tolist() if v >= 0]
            assert values.tolist() == sorted(values[values >= 0].tolist()) + [-1] * int((values < 0).sum())
        assert len(used) == len(plan["attributes"])
        images = set(plan["image_ids"].tolist())
        assert used == {key: values for key, values in known.items() if key[0] in images}


def test_attributes_come_in_turn_and_rare_values_evenly() -> None:
    value_of = LABELS[LABELS["attribute"] == 0].set_index("image_id")["value"]
    counts: Counter[int] = Counter()
    for epoch in range(6):
        for number, plan in enumerate(plans(epoch)):
            if (epoch * 9 + number) % 3 == 0:  # attribute 0's turn: all three values, of about 5 % and 90 %
                found = value_of[plan["image_ids"]].value_counts()
                assert set(found.index) == {0, 1, 2}
                counts.update(found.to_dict())
    share = {value: count / sum(counts.values()) for value, count in counts.items()}
    assert share[1] > 0.25 and share[2] > 0.25, share


def test_without_a_number_of_images_a_value_an_epoch_is_every_image_once() -> None:
    first, second = (
        [plan["image_ids"].tolist() for plan in plans(epoch, images_per_value=None, start=0)] for epoch in (0, 1)
    )
    assert sorted(itertools.chain(*first)) == sorted(set(LABELS["image_id"])) == sorted(itertools.chain(*second))
    assert first != second
    later = [plan["image_ids"].tolist() for plan in plans(images_per_value=None, start=4)]
    assert later == first[4:]


def test_hundreds_of_values_are_drawn_a_few_at_a_time() -> None:
    values = np.repeat(np.arange(230), 5)
    labels = pd.DataFrame({"image_id": np.arange(1150), "attribute": 0, "value": values})
    sampler = BalancedSampler(labels)
    seen: set[int] = set()
    for plan in sampler.plan_epoch(batch_size=32, images_per_value=4, seed=0, epoch=0):
        found = Counter(plan["values"].flatten().tolist())
        assert set(found.values()) <= {4, 5} and len(found) >= 7
        seen |= set(found)
    assert len(seen) > 150


def test_batches_are_the_same_on_any_number_of_workers_and_from_any_start() -> None:
    def micro_batches(of_workers: list[list[dict[str, Any]]]) -> list[list[Any]]:
        return [
            [
                (plan["image_ids"][a:b].tolist(), plan["flip"][a:b].tolist(), seed)
                for plan in of_batch
                for (a, b), seed in zip(itertools.pairwise(plan["bounds"]), plan["seeds"], strict=True)
            ]
            for of_batch in zip(*of_workers, strict=True)
        ]

    alone = micro_batches([plans()])
    assert all(len(batch) == 4 for batch in alone) and alone != micro_batches([plans(epoch=1)])
    for workers in (2, 3, 4):
        for start in (0, 5):
            of_workers = [plans(rank=rank, workers=workers, start=start) for rank in range(workers)]
            assert micro_batches(of_workers) == alone[start:]
            for number, of_batch in enumerate(zip(*of_workers, strict=True)):
                whole = plans()[start + number]
                assert [plan["begin"] for plan in of_batch] == np.cumsum(
                    [0, *(len(plan["image_ids"]) for plan in of_batch[:-1])]
                ).tolist()
                for plan in of_batch:  # all workers know the labels of the whole batch
                    assert all(torch.equal(plan[k], whole[k]) for k in ("image_index", "attributes", "values"))


def test_a_value_of_one_image_is_not_drawn_and_an_attribute_of_such_is_named() -> None:
    labels = pd.DataFrame({"image_id": [0, 1, 2, 3], "attribute": 0, "value": [0, 0, 1, 1]})
    lonely = pd.DataFrame({"image_id": [0, 1, 2, 3], "attribute": 1, "value": [0, 0, 0, 1]})
    assert undrawable(labels) == []
    assert undrawable(pd.concat([labels, lonely])) == [1]


def test_a_table_smaller_than_a_batch_is_one_batch() -> None:
    labels = pd.DataFrame({"image_id": [0, 1, 2, 3, 4], "attribute": 0, "value": [0, 0, 1, 1, 1]})
    (plan,) = BalancedSampler(labels).plan_epoch(batch_size=64, images_per_value=4, seed=0, epoch=0)
    assert sorted(plan["image_ids"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(3))
def test_equal_seeds_draw_equal_batches(seed: int) -> None:
    first, again, other = (
        [plan["image_ids"].tolist() for plan in plans(seed=number)] for number in (seed, seed, seed + 1)
    )
    assert first == again != other
