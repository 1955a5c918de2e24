"""The simulation of many workers against limits that can be worked out by hand, and against torch's own buckets."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks import extrapolation
from benchmarks.scale import MESSAGES, Passes, fitted, work_of
from benchmarks.simulation import Bucket, Data, Link, Loader, Saving, Store, Work, simulate, start_seconds
from benchmarks.sizes import FIRST_BUCKET, Gradient, buckets_of, sizes_of

WORK = Work(0.1, 0.2, 0.03, (Bucket(0.25, 4e6), Bucket(0.5, 25e6), Bucket(1.0, 25e6)), statistics=1e5)
QUICK = Data(images=48, image_bytes=5_000, read_rate=1e12, decode_rate=1e9)
COMPUTE = WORK.forward + WORK.backward + WORK.optimizer
ENDLESS = Link(math.inf, 0.0)
STORE = Store(bytes=3e8, copy_rate=3e9, upload_rate=3e8, every=50)


def test_a_ring_sends_each_byte_twice_but_for_one_share_and_pays_every_hop():
    link = Link(bytes_per_second=1e9, latency=1e-3)
    assert link.all_reduce(8e9, 2) == pytest.approx(8 + 2e-3)
    assert link.all_reduce(8e9, 8) == pytest.approx(2 * 7 / 8 * 8 + 14e-3)
    assert link.all_reduce(8e9, 1) == 0


def test_one_worker_exchanges_nothing_whatever_the_link():
    alone = simulate(WORK, 1, Link(1.0, 1.0), QUICK)
    assert alone.step == pytest.approx(COMPUTE)
    assert (alone.exposed, alone.straggling, alone.stall) == (0, 0, 0)


@pytest.mark.parametrize("workers", [2, 7, 64])
def test_an_endless_link_makes_workers_as_fast_as_one(workers):
    assert simulate(WORK, workers, ENDLESS, QUICK).step == pytest.approx(COMPUTE)


def test_without_overlap_compute_and_every_all_reduce_add_up():
    link = Link(1e9, 1e-4, overlap=False)
    exchanged = sum(link.all_reduce(size, 5) for size in (4e6, 25e6, 25e6, 1e5))
    found = simulate(WORK, 5, link, QUICK)
    assert found.step == pytest.approx(COMPUTE + exchanged)
    assert found.exposed == pytest.approx(exchanged)


def test_with_overlap_only_the_last_bucket_and_the_statistics_show_on_a_fast_link():
    link = Link(1e9, 1e-4)
    shown = link.all_reduce(25e6, 5) + link.all_reduce(1e5, 5)
    assert simulate(WORK, 5, link, QUICK).exposed == pytest.approx(shown)


def test_with_overlap_a_slow_link_is_busy_from_the_first_bucket_on():
    link = Link(1e8, 1e-4)
    busy = sum(link.all_reduce(size, 5) for size in (4e6, 25e6, 25e6, 1e5))
    expected = WORK.forward + 0.25 * WORK.backward + busy + WORK.optimizer
    assert simulate(WORK, 5, link, QUICK).step == pytest.approx(expected)


def test_slow_decoding_sets_the_rate_and_threads_raise_it():
    slow = replace(QUICK, decode_rate=40)  # 1.2 s a batch
    found = simulate(WORK, 2, ENDLESS, slow)
    assert found.step == pytest.approx(1.2, rel=1e-3)
    assert found.data_wait == pytest.approx(1.2 - COMPUTE, rel=1e-2)
    assert simulate(WORK, 2, ENDLESS, replace(slow, threads=2)).step == pytest.approx(0.6, rel=1e-3)


def test_a_slow_disk_sets_the_rate_too():
    assert simulate(WORK, 1, ENDLESS, replace(QUICK, read_rate=240_000)).step == pytest.approx(1.0, rel=1e-3)


def test_batches_made_ahead_cost_nothing_and_others_all_of_their_time():
    data = replace(QUICK, decode_rate=480)  # 0.1 s a batch
    assert simulate(WORK, 1, ENDLESS, data).data_wait == pytest.approx(0)
    assert simulate(WORK, 1, ENDLESS, replace(data, prefetch=0)).data_wait == pytest.approx(0.1, rel=1e-4)


def test_the_loader_makes_no_more_than_it_was_asked_for():
    loader = Loader(replace(QUICK, decode_rate=48, prefetch=2))  # 1 s a batch: there at 1 and 2
    taken = [loader.take(10.0) for _ in range(4)]
    assert taken == pytest.approx([10, 10, 11, 12], abs=1e-4)


def test_the_slowest_worker_sets_the_pace():
    uneven = replace(WORK, jitter=0.2)
    alone, many = (simulate(uneven, workers, ENDLESS, QUICK).step for workers in (1, 64))
    most = 1.2 * (WORK.forward + WORK.backward) + WORK.optimizer
    assert COMPUTE < alone < 0.99 * many
    assert 0.99 * most < many < most


def test_a_quick_store_costs_its_snapshots_alone():
    found = simulate(WORK, 1, ENDLESS, QUICK, STORE, steps=1_000)  # written in 1 s, 4 steps: every 46th is saved
    late = 0.67 + 0.34 + 0.01  # the first three begin so late that training waits for them
    assert found.stall == pytest.approx((1_000 / 46 * 0.1 + late) / 1_000, rel=0.05)


def test_a_store_slower_than_the_interval_sets_the_pace():
    slow = replace(STORE, upload_rate=3e6, every=50)  # 100 s; 50 steps take 16.5 s
    found = simulate(WORK, 1, ENDLESS, QUICK, slow, steps=1_000)
    assert found.stall > COMPUTE
    assert found.step == pytest.approx(COMPUTE + found.stall)


@pytest.mark.parametrize("every, upload", [(1, 1e9), (2, 3e8), (3, 3e7), (50, 3e7)])
def test_fewer_steps_than_every_can_ever_be_lost(every, upload):
    saving, now = Saving(replace(STORE, every=every, upload_rate=upload)), 0.0
    for step in range(1, 200):
        now = saving.after_step(step, now + COMPUTE)
        assert step - saving.durable < every


def test_all_workers_wait_for_the_one_that_saves():
    alone, many = (simulate(WORK, workers, ENDLESS, QUICK, STORE) for workers in (1, 8))
    assert many.step == pytest.approx(alone.step)


def test_the_same_seed_gives_the_same_outcome_and_another_one_another():
    uneven = replace(WORK, jitter=0.2)
    runs = [simulate(uneven, 8, Link(1e9, 1e-4), QUICK, STORE, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_every_worker_reads_all_shards_at_the_start():
    assert start_seconds(1e9, 1, storage_rate=1e9, worker_rate=5e8) == 2
    assert start_seconds(1e9, 64, storage_rate=1e9, worker_rate=5e8) == 64


def test_buckets_are_those_of_torch():
    layers = nn.Sequential(*(nn.Linear(width, 701) for width in (300, 701, 4_001, 701, 9_973, 701)))
    shapes = [parameter for layer in reversed(layers) for parameter in (layer.bias, layer.weight)]
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * 2**20]
    torchs, _ = dist._compute_bucket_assignment_by_size(shapes, limits)
    gradients = [Gradient((n + 1) / len(shapes), 4 * p.numel()) for n, p in enumerate(shapes)]
    ours = buckets_of(gradients, wire=1)
    assert dist._DEFAULT_FIRST_BUCKET_BYTES == FIRST_BUCKET
    assert [b.bytes for b in ours] == [sum(gradients[i].bytes for i in bucket) for bucket in torchs]
    assert [b.ready for b in ours] == [gradients[bucket[-1]].ready for bucket in torchs]
    assert sum(b.bytes for b in buckets_of(gradients, wire=2)) == 2 * sum(b.bytes for b in ours)


def test_sizes_are_counted_on_the_model_itself():
    found = sizes_of("resnet18", attributes=3, width=16, size=32)
    assert sum(gradient.bytes for gradient in found.gradients) == 4 * found.parameters
    shares = [gradient.ready for gradient in found.gradients]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5 and shares[-1] == pytest.approx(1)
    assert found.backward == pytest.approx(2 * found.forward, rel=0.1)
    twice = sizes_of("resnet18", attributes=3, width=16, size=64)
    assert twice.forward == pytest.approx(4 * found.forward, rel=0.05)
    assert twice.activations == pytest.approx(4 * found.activations, rel=0.1)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wire", [1, 2])
def test_the_link_that_made_the_figures_is_found_again(wire):
    link = Link(2e9, 3e-4)
    found = fitted([(float(size), link.all_reduce(wire * size, 2)) for size in MESSAGES], wire)
    assert found.bytes_per_second == pytest.approx(2e9) and found.latency == pytest.approx(3e-4)
    assert not found.overlap


def test_measured_passes_keep_their_mean_and_spread():
    sizes = sizes_of("resnet18", attributes=3, width=16, size=32)
    steps = [Passes(0.1 * slow, 0.2 * slow, 0.03) for slow in (0.9, 0.95, 1.0, 1.05, 1.1)]
    work = work_of(steps, sizes, wire=1)
    assert (work.forward + work.backward) * (1 + work.jitter / 2) == pytest.approx(0.3)
    found = simulate(work, 1, ENDLESS, QUICK, steps=5_000)
    assert found.step == pytest.approx(0.33, rel=0.01)
    assert simulate(work, 2, ENDLESS, QUICK, steps=5_000).straggling == pytest.approx(
        work.jitter / 6 * (work.forward + work.backward), rel=0.05
    )


def test_tables_are_whole_and_a_batch_that_grows_with_the_gpus_keeps_them_busy():
    rows = extrapolation.training_rows(decode_rate=2_944, shard_rate=3e8)
    assert {len(row) for row in rows} == {len(extrapolation.TRAINING)}
    share = {(row[0], row[1]): int(row[4].rstrip("%")) for row in rows}
    assert share["1", "64"] == 100
    assert share["64", "64"] < share["8", "64"] < 60
    assert min(share["8", "512"], share["64", "4,096"]) > 90
    assert {len(row) for row in extrapolation.gallery_rows()} == {len(extrapolation.GALLERY)}
    assert {len(row) for row in extrapolation.embedding_rows()} == {len(extrapolation.EMBEDDING)}
