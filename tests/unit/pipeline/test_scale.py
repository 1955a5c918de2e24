"""The arithmetic of scale against limits that can be worked out by hand, and against trainings that were measured."""

import math

import pytest
import torch

from benchmarks import scale
from benchmarks.scale import BUCKET, FIRST_BUCKET, Bucket, Link, buckets_of, exposed

BUCKETS, STATISTICS, BACKWARD = [Bucket(0.25, 4e6), Bucket(0.5, 25e6), Bucket(1.0, 25e6)], 1e5, 0.2


@pytest.fixture(scope="module")
def small() -> scale.Counts:
    return scale.count("resnet18", attributes=8, width=64, size=32)


def sum_of_all_reduces(link: Link, workers: int) -> float:
    return sum(link.all_reduce(size, workers) for size in (4e6, 25e6, 25e6, STATISTICS))


def test_ring_all_reduce_sends_all_but_one_part_twice_and_pays_the_latency_of_every_message():
    link = Link(bytes_per_second=1e9, latency=1e-3)
    assert link.all_reduce(8e9, 2) == pytest.approx(8 + 2e-3)
    assert link.all_reduce(8e9, 8) == pytest.approx(2 * 7 / 8 * 8 + 14e-3)
    assert link.all_reduce(8e9, 1) == 0


@pytest.mark.parametrize(
    ("workers", "link"), [(1, Link(1.0, 1.0)), (1, Link(1.0, 1.0, overlap=False)), (64, Link(math.inf, 0.0))]
)
def test_one_worker_and_an_infinitely_fast_link_add_no_time(workers, link):
    assert exposed(BACKWARD, BUCKETS, STATISTICS, workers, link) == 0


def test_without_overlap_every_all_reduce_adds_its_time():
    link = Link(1e9, 1e-4, overlap=False)
    assert exposed(BACKWARD, BUCKETS, STATISTICS, 5, link) == pytest.approx(sum_of_all_reduces(link, 5))


def test_on_a_fast_link_only_the_last_bucket_and_the_statistics_are_exposed():
    link = Link(1e9, 1e-4)
    last = link.all_reduce(25e6, 5) + link.all_reduce(STATISTICS, 5)
    assert exposed(BACKWARD, BUCKETS, STATISTICS, 5, link) == pytest.approx(last)


def test_a_slow_link_is_busy_from_the_first_bucket_on():
    link = Link(1e8, 1e-4)
    expected = 0.25 * BACKWARD + sum_of_all_reduces(link, 5) - BACKWARD
    assert exposed(BACKWARD, BUCKETS, STATISTICS, 5, link) == pytest.approx(expected)


def test_buckets_close_once_they_reach_the_limits_of_distributed_data_parallel():
    sizes = [2**19, 2**19, 3 * 2**20, 25 * 2**20, 30 * 2**20, 2**10, 2**11]
    found = buckets_of([Bucket(number / 7, size) for number, size in enumerate(sizes, 1)])
    assert [bucket.bytes for bucket in found] == [FIRST_BUCKET, 3 * 2**20 + BUCKET, 30 * 2**20, 3 * 2**10]
    assert [bucket.ready for bucket in found] == [2 / 7, 4 / 7, 5 / 7, 1.0]
    assert sum(bucket.bytes for bucket in buckets_of(found, wire=2)) == 2 * sum(sizes)


def test_counts_are_those_of_the_model(small):
    assert sum(gradient.bytes for gradient in small.gradients) == 4 * small.parameters
    ready = [gradient.ready for gradient in small.gradients]
    assert ready == sorted(ready)
    assert 0 <= ready[0] < 0.5 and ready[-1] == pytest.approx(1)
    assert small.backward == pytest.approx(2 * small.forward, rel=0.1)
    larger = scale.count("resnet18", attributes=8, width=64, size=64)
    assert larger.forward == pytest.approx(4 * small.forward, rel=0.05)
    assert larger.activations == pytest.approx(4 * small.activations, rel=0.1)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("wire", "rate", "latency", "passes", "measured"),
    [(1, 1.30e9, 177e-6, (0.089, 0.190, 0.018), 2.77), (2, 0.98e9, 168e-6, (0.153, 0.319, 0.018), 1.68)],
    ids=["bf16", "fp32"],
)
def test_the_formula_is_within_10_percent_of_two_measured_workers(small, wire, rate, latency, passes, measured):
    """Figures of benchmarks/results/scale-2026-11-26.md: two workers that exchange nothing, the link, and the whole."""
    link = Link(rate, latency, overlap=False)
    shown = exposed(passes[1], buckets_of(small.gradients, wire), 8 * small.statistics, 2, link)
    assert 1 / (sum(passes) + shown) == pytest.approx(measured, rel=0.1)


def test_tables_are_complete_and_a_batch_that_grows_with_the_gpus_keeps_them_busy():
    counts = scale.count("resnet50", scale.ATTRIBUTES, scale.WIDTH, 224)
    rows = scale.training_rows(counts)
    assert {len(row) for row in rows} == {len(scale.TRAINING)}
    efficiency = {(row[0], row[1]): int(row[4].rstrip("%")) for row in rows}
    assert efficiency["1", "64"] == 100
    assert efficiency["64", "64"] < efficiency["8", "64"] < 60
    assert min(efficiency["8", "512"], efficiency["64", "4,096"]) > 90
    assert {len(row) for row in scale.gallery_rows()} == {len(scale.GALLERY)}
    assert {len(row) for row in scale.embedding_rows(counts.forward)} == {len(scale.EMBEDDING)}
