"""The loop around the steps: batches loaded ahead, one epoch of training, one evaluation. Plain PyTorch and numpy.

Shape suffixes: K pairs (image, attribute), D embedding width.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agman.base import RetrievalModel
from agman.engine import Batch, embed_batches
from agman.metrics import Retrieval, retrieval
from agman.stepping import LOSSES, Stepper, StepResult

Item = TypeVar("Item")


class Ahead(Iterator[Item]):
    """The items in their order, made up to `depth` ahead in a background thread, from now on; 0: when asked for.

    To be closed by whoever does not take them all.
    """

    def __init__(self, items: Iterable[Item], depth: int):
        self._items, self._end = iter(items), object()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="agman-ahead") if depth else None
        self._waiting: deque[Any] = deque()
        for _ in range(depth):
            self._order()

    def __next__(self) -> Item:
        if not self._pool:
            return next(self._items)
        if not self._waiting:
            raise StopIteration
        item = self._waiting.popleft().result()
        if item is self._end:
            self.close()
            raise StopIteration
        self._order()
        return item

    def close(self) -> None:
        """Make no more."""
        self._waiting.clear()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _order(self) -> None:
        assert self._pool
        self._waiting.append(self._pool.submit(next, self._items, self._end))


def pinned(batch: Batch, device: torch.device | str) -> Batch:
    """For CUDA: in memory that the device can copy from while it computes. To be called where batches are loaded."""
    return _moved(batch, torch.Tensor.pin_memory) if torch.device(device).type == "cuda" else batch


def on_device(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """The batches on the device. On CUDA each is copied while the step before it computes, if it is `pinned`."""
    if torch.device(device).type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    waiting = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = _moved(batch, lambda tensor: tensor.to(device, non_blocking=True))
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copying)
        waiting = _moved(copied, _used_here)
    if waiting is not None:
        yield waiting


def _used_here(tensor: Tensor) -> Tensor:
    """The allocator must not give the memory away while the computing stream still reads it."""
    tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def _moved(batch: Batch, move: Callable[[Tensor], Tensor]) -> Batch:
    tensors = {one.name: value for one in fields(batch) if isinstance(value := getattr(batch, one.name), Tensor)}
    moved: dict[str, Any] = {name: move(tensor) for name, tensor in tensors.items()}
    return replace(batch, **moved)


@dataclass
class Totals:
    """What a stretch of steps came to; `as_dict` and `Totals(**…)` carry it through a checkpoint."""

    sums: dict[str, float] = field(default_factory=dict)
    """Over all triplets: each loss, and the correct ones."""
    triplets: int = 0
    steps: int = 0
    timed: int = 0
    """Triplets of the steps that this process made itself, in `seconds`."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds spent waiting for a batch."""
    gradient_norm: float = 0.0
    """The largest, before clipping."""

    def add(self, result: StepResult, seconds: float = 0.0, waited: float = 0.0) -> None:
        for name in LOSSES:
            self.sums[name] = self.sums.get(name, 0.0) + getattr(result, name) * result.triplets
        self.sums["correct"] = self.sums.get("correct", 0.0) + result.correct
        self.triplets += result.triplets
        self.timed += result.triplets
        self.steps += 1
        self.seconds += seconds
        self.waited += waited
        self.gradient_norm = max(self.gradient_norm, result.gradient_norm)

    def clear(self) -> None:
        """Begin anew."""
        for one in fields(self):
            setattr(self, one.name, {} if one.name == "sums" else type(getattr(self, one.name))())

    def as_dict(self) -> dict[str, Any]:
        """Without the times: they are of one process's life."""
        return {"sums": dict(self.sums), "triplets": self.triplets, "steps": self.steps} | {
            "gradient_norm": self.gradient_norm
        }

    def means(self) -> dict[str, float]:
        """Losses per triplet, triplet_accuracy, gradient_norm_max, triplets_per_second and data_wait_share."""
        if not self.triplets:
            return {}
        means = {name: total / self.triplets for name, total in self.sums.items()}
        means["triplet_accuracy"] = means.pop("correct")
        means["gradient_norm_max"] = self.gradient_norm
        if self.seconds:
            means["triplets_per_second"] = self.timed / self.seconds
            means["data_wait_share"] = self.waited / self.seconds
        return means


def train_epoch(
    stepper: Stepper,
    batches: Iterable[Batch],
    totals: list[Totals],
    *,
    stop: Callable[[], bool] = lambda: False,
    after_step: Callable[[StepResult], None] = lambda result: None,
) -> bool:
    """Make a step of every batch and add it to each of `totals`; False if a process's `stop` ended it early.

    `after_step` runs after every step; its time counts for the next one. `stop` is asked before every step; once any
    process says yes, all end after that step.
    """
    iterator = iter(on_device(batches, stepper.device))
    mark = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return True
        waited = time.perf_counter() - asked
        result = stepper.step(batch, stop=stop())
        now = time.perf_counter()
        for one in totals:
            one.add(result, now - mark, waited)
        mark = now
        after_step(result)
        if result.votes:
            return False


def embed_dataset(
    model: RetrievalModel,
    image_ids: np.ndarray,
    attributes: np.ndarray,
    read: Callable[[np.ndarray], Tensor],
    *,
    device: torch.device | str,
    precision: str = "fp32",
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda images_done: None,
) -> Tensor:
    """Embeddings K×D (float32, on the CPU) of K pairs in their order; every distinct image passes the backbone once.

    `read` gives U×3×S×S uint8 for U image ids.
    """
    ids, image_of_pair = np.unique(image_ids, return_inverse=True)
    order = np.argsort(image_of_pair, kind="stable")  # pairs of one image lie side by side
    bounds = np.searchsorted(image_of_pair[order], range(0, len(ids) + batch_size, batch_size))

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for number, start in enumerate(range(0, len(ids), batch_size)):
            of_batch = order[bounds[number] : bounds[number + 1]]
            yield (
                read(ids[start : start + batch_size]),
                torch.from_numpy(image_of_pair[of_batch] - start),
                torch.from_numpy(attributes[of_batch].astype(np.int64)),
            )
            advance(len(ids[start : start + batch_size]))

    decoded = Ahead(batches(), 1)  # while the batch before is embedded
    try:
        embedded = embed_batches(model, decoded, device=device, precision=precision, channels_last=True)
    finally:
        decoded.close()
    in_order = torch.empty_like(embedded)
    in_order[torch.from_numpy(order)] = embedded
    return in_order


def rank_candidates(
    embeddings: Tensor, attributes: np.ndarray, values: np.ndarray, is_query: np.ndarray, names: list[str]
) -> dict[str, Retrieval]:
    """Rank every attribute's candidates for each of its queries. All of K pairs, in their order; `names` of attributes.

    Attributes without a query are left out.
    """
    results = {}
    values_k = torch.from_numpy(values.astype(np.int64))
    for attribute, name in enumerate(names):
        query, candidate = ((attributes == attribute) & role for role in (is_query, ~is_query))
        if query.any():
            results[name] = retrieval(embeddings[query], embeddings[candidate], values_k[query], values_k[candidate])
    return results
