"""The loop around the steps: prefetched batches, one epoch of training, one evaluation. Plain PyTorch and numpy.

Shape suffixes: K pairs (image, attribute), D embedding width.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agman.base import RetrievalModel
from agman.engine import AnyBatch, embed_batches
from agman.metrics import Retrieval, retrieval
from agman.stepping import Stepper, StepResult

Item = TypeVar("Item")


class Prefetcher(Iterator[Item]):
    """Iterator over `items` that makes up to `depth` of them in advance, in a background thread.

    The order is kept. The thread starts at once; with depth 0, items are made when they are asked for. A caller that
    does not take all items must call `close`.
    """

    def __init__(self, items: Iterable[Item], depth: int):
        self._items, self._end = iter(items), object()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="agman-prefetch") if depth else None
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
        """Make no more items."""
        self._waiting.clear()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _order(self) -> None:
        assert self._pool
        self._waiting.append(self._pool.submit(next, self._items, self._end))


def pinned(batch: AnyBatch, device: torch.device | str) -> AnyBatch:
    """Return the batch in memory that a GPU can copy from while it computes; for other devices, the batch itself.

    Call it in the thread that loads batches.
    """
    return batch.map(torch.Tensor.pin_memory) if torch.device(device).type == "cuda" else batch


def on_device(batches: Iterable[AnyBatch], device: torch.device | str) -> Iterator[AnyBatch]:
    """Yield the batches on the device. A GPU copies each one while it computes on the one before, if it is `pinned`."""
    if torch.device(device).type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    waiting = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = batch.map(lambda tensor: tensor.to(device, non_blocking=True))
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copying)
        waiting = copied.map(_used_here)
    if waiting is not None:
        yield waiting


def _used_here(tensor: Tensor) -> Tensor:
    """Return the tensor; its memory is not reused while the computing stream still reads it."""
    tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


@dataclass
class RunningMeans:
    """Means over an interval of steps; `as_dict` and `RunningMeans(**…)` store them in a checkpoint."""

    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the means of `StepResult`, each times the number of its step's triplets or, without triplets, images."""
    triplets: int = 0
    images: int = 0
    steps: int = 0
    gradient_norm: float = 0.0
    """The largest norm before clipping."""
    timed: int = 0
    """Images of the steps that this process made itself, in `seconds`."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds spent waiting for a batch."""

    def add(self, result: StepResult, seconds: float = 0.0, waited: float = 0.0) -> None:
        """Add a step that took `seconds`, of which `waited` were spent waiting for its batch."""
        for name, mean in result.means.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean * (result.triplets or result.images)
        self.triplets += result.triplets
        self.images += result.images
        self.timed += result.images
        self.steps += 1
        self.seconds += seconds
        self.waited += waited
        self.gradient_norm = max(self.gradient_norm, result.gradient_norm)

    def clear(self) -> None:
        """Reset all sums, to begin the next interval."""
        vars(self).update(vars(RunningMeans()))

    def as_dict(self) -> dict[str, Any]:
        """Return the state without the times, which belong to one process's life."""
        kept = ("sums", "triplets", "images", "steps", "gradient_norm")
        return {name: value for name, value in vars(self).items() if name in kept} | {"sums": dict(self.sums)}

    def means(self) -> dict[str, float]:
        """Return the means of `StepResult`, gradient_norm_max, images_per_second and data_wait_share.

        Of triplets also triplets_per_second, a third of images_per_second.
        """
        if not self.steps:
            return {}
        means = {name: total / (self.triplets or self.images) for name, total in self.sums.items()}
        means["gradient_norm_max"] = self.gradient_norm
        if self.seconds:
            means["images_per_second"] = self.timed / self.seconds
            if self.triplets:
                means["triplets_per_second"] = self.timed / 3 / self.seconds
            means["data_wait_share"] = self.waited / self.seconds
        return means


def train_epoch(
    stepper: Stepper,
    batches: Iterable[AnyBatch],
    means: Sequence[RunningMeans] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepResult]:
    """Make a step of every batch, add it to each of `means`, and yield its result.

    `stop` is called before every step. Once it returns True in any process, all processes end after that step: the
    last result then has votes. Time that the caller spends on a result counts for the next step.
    """
    iterator = iter(on_device(batches, stepper.device))
    mark = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        waited = time.perf_counter() - asked
        result = stepper.step(batch, stop=stop())
        now = time.perf_counter()
        for one in means:
            one.add(result, now - mark, waited)
        mark = now
        yield result
        if result.votes:
            return


def embed_dataset(
    model: RetrievalModel,
    image_ids: np.ndarray,
    attributes: np.ndarray,
    read: Callable[[np.ndarray], Tensor],
    *,
    device: torch.device | str,
    precision: str = "fp32",
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Return the embeddings of K pairs in their order: K×D float32 on the CPU.

    Every distinct image passes the backbone once. `read` returns U×3×S×S uint8 for U image ids; `advance` is called
    with the number of images of every batch that is read.
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

    decoded = Prefetcher(batches(), 1)  # while the batch before is embedded
    try:
        embedded = embed_batches(model, decoded, device=device, precision=precision)
    finally:
        decoded.close()
    in_order = torch.empty_like(embedded)
    in_order[torch.from_numpy(order)] = embedded
    return in_order


def rank_candidates(
    embeddings: Tensor, attributes: np.ndarray, values: np.ndarray, is_query: np.ndarray, names: list[str]
) -> dict[str, Retrieval]:
    """Rank every attribute's candidates for each of its queries, and return the rankings by attribute name.

    embeddings K×D, attributes K, values K and is_query K (bool) describe the K pairs; names has every attribute's.
    Attributes without a query are left out.
    """
    results = {}
    values_k = torch.from_numpy(values.astype(np.int64))
    for attribute, name in enumerate(names):
        query, candidate = ((attributes == attribute) & role for role in (is_query, ~is_query))
        if query.any():
            results[name] = retrieval(embeddings[query], embeddings[candidate], values_k[query], values_k[candidate])
    return results
