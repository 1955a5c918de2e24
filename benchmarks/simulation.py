"""A simulation of data-parallel training: what a step costs on workers that nobody has to own.

It follows agman's loop event by event: batches decoded ahead in a thread (`agman.Prefetcher`), forward and backward
pass, an all-reduce of every bucket of gradients as soon as all workers have it (DistributedDataParallel with
agman.Stepper's hook), one of batch norm's statistics, the optimizer, and checkpoints in the background
(`pipeline.training.checkpoints.Saver`).
Times are seconds, sizes bytes. Plain Python: the same figures and seed give the same outcome everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

WARM_UP = 5
"""Steps that are not counted: the queue of batches fills, the first checkpoint is far."""


@dataclass(frozen=True)
class Link:
    """The slowest hop of the ring that the workers form."""

    bytes_per_second: float
    latency: float
    """Of one message from neighbour to neighbour."""
    overlap: bool = True
    """Whether it works while the workers compute. Where the cores that compute also move the bytes, it does not."""

    def all_reduce(self, size: float, workers: int) -> float:
        """A ring's: scatter and gather, n-1 messages of 1/n of the size each (Patarasuk & Yuan 2009)."""
        hops = 2 * (workers - 1)
        return hops * (size / workers / self.bytes_per_second + self.latency)


@dataclass(frozen=True)
class Bucket:
    """Gradients that are all-reduced together."""

    ready: float
    """Share of the backward pass after which they stand."""
    bytes: float
    """As sent."""


@dataclass(frozen=True)
class Work:
    """What every worker computes in a step."""

    forward: float
    backward: float
    optimizer: float
    buckets: tuple[Bucket, ...] = ()
    """In the order of the backward pass."""
    statistics: float = 0.0
    """Bytes all-reduced after the backward pass: batch norm's, and the step's figures."""
    jitter: float = 0.0
    """A worker's passes take up to (1 + jitter) times as long, evenly drawn for every step and worker."""


@dataclass(frozen=True)
class Data:
    """How a worker comes by a step's pictures: reads packed bytes, decodes them, up to `prefetch` batches ahead."""

    images: float
    """Of a worker, for a step."""
    image_bytes: float
    read_rate: float
    """Bytes a second."""
    decode_rate: float
    """Images a second and thread."""
    threads: int = 1
    prefetch: int = 2

    @property
    def seconds(self) -> float:
        """For the batch of a step."""
        return self.images * (self.image_bytes / self.read_rate + 1 / (self.decode_rate * self.threads))


@dataclass(frozen=True)
class Store:
    """Where checkpoints go."""

    bytes: float
    copy_rate: float
    """Of the snapshot, during which training stands still."""
    upload_rate: float
    """Of the write behind training's back."""
    every: int
    """Steps that may be lost at most."""


@dataclass(frozen=True)
class Outcome:
    """Means over the steps after WARM_UP."""

    step: float
    data_wait: float
    """Of a step and worker, waiting for a batch."""
    straggling: float
    """Of a step: the slowest worker's backward pass ends so much after the mean of all."""
    exposed: float
    """Of a step: all-reduces that no backward pass hides."""
    stall: float
    """Of a step: snapshots, and waiting for the write of an earlier one."""


class Loader:
    """One thread that makes a worker's batches in their order (agman.Prefetcher)."""

    def __init__(self, data: Data):
        self.seconds, self.prefetch = data.seconds, data.prefetch
        self.free = 0.0
        self.made = [self._make(0.0) for _ in range(data.prefetch)]

    def take(self, now: float) -> float:
        """When the next batch is there, asked for now; a new one is ordered."""
        if not self.prefetch:
            return now + self.seconds
        there = max(now, self.made.pop(0))
        self.made.append(self._make(there))
        return there

    def _make(self, ordered: float) -> float:
        self.free = max(self.free, ordered) + self.seconds
        return self.free


class Saving:
    """The rule of pipeline.training.checkpoints.Saver: one write at a time, at most `every` steps lost."""

    def __init__(self, store: Store):
        self.every = store.every
        self.copying, self.writing = store.bytes / store.copy_rate, store.bytes / store.upload_rate
        self.durable, self.lead = 0, 1
        self.begun: tuple[int, float] | None = None
        """Step of the snapshot that is being written, and when that ends."""
        self.asked: list[float] = []
        """When each step was over, since that write began."""

    def after_step(self, step: int, now: float) -> float:
        """When training goes on."""
        self.asked.append(now)
        self._settle(now)
        if self.begun is None and step - self.durable >= max(1, self.every - self.lead):
            now = self._begin(step, now)
        while step - self.durable >= self.every:
            if self.begun is None:
                now = self._begin(step, now)
            now = max(now, self.begun[1]) if self.begun else now
            self._settle(now)
        return now

    def _begin(self, step: int, now: float) -> float:
        now += self.copying
        self.begun, self.asked = (step, now + self.writing), []
        return now

    def _settle(self, now: float) -> None:
        if self.begun is None or self.begun[1] > now:
            return
        self.durable, ended = self.begun
        steps_meanwhile = sum(asked < ended for asked in self.asked)
        self.lead = max(1, min(steps_meanwhile + 1, self.every // 2))
        self.begun = None


@dataclass
class _Sums:
    data_wait: float = 0.0
    straggling: float = 0.0
    exposed: float = 0.0
    stall: float = 0.0
    began: float = field(default=0.0)


def exchange(work: Work, link: Link, begun: Sequence[float], slowness: Sequence[float]) -> float:
    """When the last all-reduce of a step is over, of workers whose backward passes begin at `begun`."""
    workers = len(begun)
    ends = [at + work.backward * slow for at, slow in zip(begun, slowness, strict=True)]
    if workers == 1:
        return ends[0]
    free = 0.0 if link.overlap else max(ends)
    for bucket in work.buckets:
        ready = max(at + bucket.ready * work.backward * slow for at, slow in zip(begun, slowness, strict=True))
        free = max(free, ready) + link.all_reduce(bucket.bytes, workers)
    return max(free, *ends) + link.all_reduce(work.statistics, workers)


def simulate(
    work: Work, workers: int, link: Link, data: Data, store: Store | None = None, steps: int = 200, seed: int = 0
) -> Outcome:
    """`steps` steps, and WARM_UP before them; rank 0 saves. Every worker has the same data path to itself."""
    draw = random.Random(seed)
    loaders = [Loader(data) for _ in range(workers)]
    saving = Saving(store) if store else None
    now, sums = [0.0] * workers, _Sums()
    for step in range(1, WARM_UP + steps + 1):
        if step == WARM_UP + 1:
            sums = _Sums(began=max(now))
        slowness = [1 + work.jitter * draw.random() for _ in range(workers)]
        started = [loader.take(at) for loader, at in zip(loaders, now, strict=True)]
        sums.data_wait += sum(started) - sum(now)
        begun = [at + work.forward * slow for at, slow in zip(started, slowness, strict=True)]
        ends = [at + work.backward * slow for at, slow in zip(begun, slowness, strict=True)]
        exchanged = exchange(work, link, begun, slowness)
        sums.straggling += max(ends) - sum(ends) / workers
        sums.exposed += exchanged - max(ends)
        now = [exchanged + work.optimizer] * workers
        if saving:
            goes_on = saving.after_step(step, now[0])
            sums.stall += goes_on - now[0]
            now[0] = goes_on
    return Outcome(
        step=(max(now) - sums.began) / steps,
        data_wait=sums.data_wait / workers / steps,
        straggling=sums.straggling / steps,
        exposed=sums.exposed / steps,
        stall=sums.stall / steps,
    )


def start_seconds(packed: float, workers: int, storage_rate: float, worker_rate: float) -> float:
    """Before the first step: every worker reads all shards once and keeps its share (data_prep.dataset.ImageStore)."""
    return max(packed / worker_rate, packed * workers / storage_rate)
