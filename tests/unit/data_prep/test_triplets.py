"""Triplets: their images, the published distribution, an end for impossible labels, and reproducibility."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.batches import batches_per_epoch, plan_epoch
from data_prep.errors import InputError
from data_prep.triplets import TripletSampler


def labels_of(counts: dict[tuple[int, int], int]) -> pd.DataFrame:
    """Return labels with counts[attribute, value] images, each with one label."""
    rows = [(a, v) for (a, v), n in counts.items() for _ in range(n)]
    frame = pd.DataFrame(rows, columns=["attribute", "value"])
    return frame.assign(image_id=np.random.default_rng(0).permutation(len(frame)) + 100)


LABELS = labels_of({(0, 0): 2, (0, 1): 7, (0, 3): 1, (2, 0): 3, (2, 1): 5, (5, 0): 4})


def test_anchor_and_positive_share_the_value_and_the_negative_does_not() -> None:
    drawn = TripletSampler(LABELS).sample(5_000, seed=1)
    value = LABELS.set_index("image_id")["value"]
    attribute = LABELS.set_index("image_id")["attribute"]
    assert (drawn.anchor != drawn.positive).all()
    np.testing.assert_array_equal(value[drawn.anchor], value[drawn.positive])
    assert (value[drawn.anchor].to_numpy() != value[drawn.negative].to_numpy()).all()
    for ids in (drawn.anchor, drawn.positive, drawn.negative):
        np.testing.assert_array_equal(attribute[ids], drawn.attribute)


def test_the_distribution_is_uniform_over_attributes_then_values_then_images() -> None:
    n = 60_000
    drawn = TripletSampler(LABELS).sample(n, seed=2)
    value = LABELS.set_index("image_id")["value"][drawn.anchor].to_numpy()
    share = {(a, v): np.mean((drawn.attribute == a) & (value == v)) for a, v in ((0, 0), (0, 1), (2, 0), (2, 1))}
    assert all(abs(part - 0.25) < 0.01 for part in share.values()), share
    # A negative of (0, 0) is any of the 7 + 1 other images of attribute 0, each equally often.
    negatives = pd.Series(drawn.negative[(drawn.attribute == 0) & (value == 0)]).value_counts(normalize=True)
    assert len(negatives) == 8
    assert abs(negatives - 1 / 8).max() < 0.02


def test_a_negative_never_has_the_anchors_value_but_may_have_any_other() -> None:
    """Images with several values of one attribute: every image without the value is a negative equally often."""
    rng = np.random.default_rng(5)
    pairs = {(int(i), 3, int(v)) for i in range(40) for v in rng.choice(6, rng.integers(1, 4), replace=False)}
    labels = pd.DataFrame(sorted(pairs), columns=["image_id", "attribute", "value"])
    have = labels.groupby("image_id")["value"].agg(set)
    groups = labels.groupby("value")["image_id"].agg(set)
    drawn = TripletSampler(labels).sample(60_000, seed=1)
    times: dict[tuple[int, int], int] = {}
    for anchor, positive, negative in zip(drawn.anchor, drawn.positive, drawn.negative, strict=True):
        assert anchor != positive
        # The triplet was drawn for a value that the first two have and the last has not.
        assert (have[anchor] & have[positive]) - have[negative]
        # Where only one value can be meant, count how often each image is its negative.
        if len(common := have[anchor] & have[positive]) == 1:
            key = (*common, negative)
            times[key] = times.get(key, 0) + 1
    for value, members in groups.items():
        counts = np.array([times.get((value, image), 0) for image in set(have.index) - members])
        assert counts.min() > 0
        assert counts.std() < 4 * np.sqrt(counts.mean())  # Poisson, not a favourite among them


def plain_sampler(labels: pd.DataFrame, n: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Sample as published: attribute and value first, then each image again and again until it fits."""
    rng = np.random.default_rng(seed)
    have: dict[tuple[int, int], set[int]] = {}
    groups: dict[int, dict[int, list[int]]] = {}
    for image, attribute, value in labels[["image_id", "attribute", "value"]].itertuples(index=False):
        have.setdefault((image, attribute), set()).add(value)
        groups.setdefault(attribute, {}).setdefault(value, []).append(image)
    triplets = []
    while len(triplets) < n:
        attribute = int(rng.choice(list(groups)))
        value = int(rng.choice(list(groups[attribute])))
        anchor = positive = int(rng.choice(groups[attribute][value]))
        while positive == anchor:
            positive = int(rng.choice(groups[attribute][value]))
        negative = anchor
        while value in have[negative, attribute]:
            negative = int(rng.choice(sorted({i for i, a in have if a == attribute})))
        triplets.append((anchor, positive, negative, attribute))
    return triplets


def test_the_distribution_is_that_of_the_published_rejection_sampling() -> None:
    """All possible triplets are about equally frequent, by a chi-square statistic."""
    rows = [(i, a, v) for a, sizes in ((0, (2, 3)), (1, (3, 2, 2))) for v, n in enumerate(sizes) for i in range(n)]
    labels = pd.DataFrame(rows, columns=["image_id", "attribute", "value"])
    labels["image_id"] += 3 * labels["value"] + 10 * labels["attribute"]
    labels.loc[len(labels)] = [10, 1, 1]  # an image with two values
    plain = pd.Series(plain_sampler(labels, 12_000, seed=1)).value_counts()
    drawn = TripletSampler(labels).sample(200_000, seed=2)
    ours = pd.Series(list(zip(drawn.anchor, drawn.positive, drawn.negative, drawn.attribute, strict=True)))
    share = ours.value_counts(normalize=True)
    assert set(plain.index) == set(share.index)
    expected = share[plain.index].to_numpy() * 12_000
    chi_square = ((plain.to_numpy() - expected) ** 2 / expected).sum()
    assert chi_square < len(share) + 5 * np.sqrt(2 * len(share))


def test_rare_values_are_reported_and_skipped() -> None:
    sampler = TripletSampler(LABELS)
    assert sampler.skipped == [(0, 3, 1), (5, 0, 4)]  # one image; no other value to be a negative
    assert set(sampler.sample(1_000, seed=0).attribute) == {0, 2}


def test_labels_without_a_possible_triplet_give_none() -> None:
    assert len(TripletSampler(labels_of({(0, 0): 1, (0, 1): 1})).sample(100, seed=0)) == 0


def test_the_same_seed_gives_the_same_triplets() -> None:
    first, again, other = (TripletSampler(LABELS).sample(100, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.negative, again.negative)
    assert (first.negative != other.negative).any()


@given(triplets=st.integers(7, 200), batch_size=st.integers(7, 50), workers=st.integers(1, 3))
def test_workers_together_see_every_triplet_once_in_the_same_batches(
    triplets: int, batch_size: int, workers: int
) -> None:
    drawn = TripletSampler(LABELS).sample(triplets, seed=0)
    plans = [
        list(plan_epoch(drawn, batch_size=batch_size, seed=0, epoch=1, rank=rank, workers=workers))
        for rank in range(workers)
    ]
    whole = list(plan_epoch(drawn, batch_size=batch_size, seed=0, epoch=1))
    seen = []
    for single, parts in zip(whole, zip(*plans, strict=True), strict=True):
        ids = np.concatenate([part["image_ids"][part["index"]] for part in parts], axis=1)
        np.testing.assert_array_equal(ids, single["image_ids"][single["index"]])
        assert torch.equal(torch.cat([part["flip"] for part in parts], dim=1), single["flip"])
        assert single["global_size"] == ids.shape[1] <= batch_size
        assert {part["global_size"] for part in parts} == {single["global_size"]}
        assert all(len(set(part["image_ids"].tolist())) == len(part["image_ids"]) for part in parts)
        seen.append(ids)
    np.testing.assert_array_equal(np.concatenate(seen, axis=1)[0], drawn.anchor)


def test_batches_differ_by_one_triplet_at_most() -> None:
    drawn = TripletSampler(LABELS).sample(100, seed=0)
    sizes = [plan["global_size"] for plan in plan_epoch(drawn, batch_size=16, seed=0, epoch=0)]
    assert len(sizes) == 7
    assert set(sizes) <= {14, 15}


def test_more_micro_batches_than_triplets_in_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="raise batch_size"):
        batches_per_epoch(30, batch_size=2, micro_batches=3)
