"""`agman doctor`: is all there that a training needs, and what to do where it is not.

Every check is bounded in time, changes nothing that stays, and says one line: ok, or what is wrong and what to do.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.storage import Storage

SECONDS = 60
"""That a check may take, but for reading a whole dataset."""
PROBE = 32 << 20
"""Bytes written to the storage, about a small checkpoint's."""
SLOW = 10.0
"""MB/s: a checkpoint of ResNet-50 with its moments, 0.4 GB, would take more than half a minute."""
ROOM = 5 << 30
"""Bytes free below which a local storage will not hold a few checkpoints."""
EXPERIMENT = "agman-doctor"
"""Where the run goes that is written to the tracking store; deleted, as that is."""
DISTRIBUTION = "agman-pipeline"
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "optuna", "pandas", "pyarrow")


class Ailment(Exception):
    """What is wrong, and what to do."""

    def __init__(self, wrong: str, remedy: str):
        super().__init__(wrong)
        self.wrong, self.remedy = wrong, remedy


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def examine(data: str | Path | None, storage: str | Path, progress: Progress = silent) -> Iterator[Finding]:
    """All checks, one after the other, each as soon as it is over; the dataset's only if `data` names one."""
    yield finding("python", _python, "make the environment anew with a Python that is allowed")
    for name in PACKAGES:
        yield finding(name, lambda name=name: package(name), "install agman-pipeline again")  # type: ignore[misc]
    yield finding("devices", _devices, "look at CUDA_VISIBLE_DEVICES and at what nvidia-smi says")
    yield finding("collectives", _collectives, "training on one worker does not need them")
    yield finding("cluster", _ray, "start a cluster, or unset RAY_ADDRESS for a local one")
    yield finding("storage", _in_time(lambda: place(storage)), "look at the address, and at who may write there")
    yield finding(
        "mlflow store", _in_time(_tracking), "start the server, or set MLFLOW_TRACKING_URI to one that answers"
    )
    if data is not None:
        yield finding(
            "dataset", lambda: _dataset(data, progress), "give the folder that `agman prep` wrote, or run it again"
        )


def finding(name: str, check: Callable[[], str], remedy: str) -> Finding:
    """What the check says; `remedy` is for what it did not foresee."""
    from pipeline.tracking.runs import reason

    try:
        return Finding(name, True, check())
    except Ailment as ailment:
        return Finding(name, False, ailment.wrong, ailment.remedy)
    except InputError as error:
        return Finding(name, False, str(error), remedy)
    except Exception as error:  # whatever a sick machine throws is a finding
        return Finding(name, False, f"{type(error).__name__}: {reason(error)}", remedy)


def _in_time(check: Callable[[], str]) -> Callable[[], str]:
    """The check, left alone in its thread if it is not over in time: libraries wait for a silent server without end."""

    def bounded() -> str:
        outcome: Future[str] = Future()

        def work() -> None:
            try:
                outcome.set_result(check())
            except Exception as error:
                outcome.set_exception(error)

        Thread(target=work, daemon=True).start()
        try:
            return outcome.result(SECONDS)
        except FutureTimeout:
            if outcome.done():  # the check's own: TimeoutError is one class
                raise
            raise InputError(f"no answer in {SECONDS} s") from None

    return bounded


def _python() -> str:
    found, allowed = platform.python_version(), SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"])
    if not allowed.contains(found, prereleases=True):
        raise InputError(f"{found}, but {allowed} is needed")
    return f"{found} ({allowed}) on {platform.system()} {platform.machine()}"


def package(name: str) -> str:
    """Its version; Ailment if it is not one that ours asks for."""
    wanted = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    allowed = next(one.specifier for one in wanted if one.name == name)
    remedy = f'pip install "{name}{allowed}"'
    try:
        found = version(name)
    except PackageNotFoundError:
        raise Ailment("is not installed", remedy) from None
    if not allowed.contains(found, prereleases=True):
        raise Ailment(f"{found}, but {allowed} is needed", remedy)
    return f"{found} ({allowed})"


def _devices() -> str:
    cpus = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            raise Ailment(
                f"{cpus} CPUs; there is an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU",
                "install the PyTorch build of the driver's CUDA version, or look at CUDA_VISIBLE_DEVICES",
            )
        return f"{cpus} CPUs, no GPU"
    total = sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))
    names = sorted({torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())})
    x = torch.ones(1024, 1024, device="cuda")
    if float((x @ x)[0, 0]) != 1024:
        raise Ailment(f"{names[0]}: a product of matrices is wrong", "the GPU is defect; leave it out")
    return f"{cpus} CPUs, {torch.cuda.device_count()} × {', '.join(names)} ({total / 2**30:.0f} GiB)"


def _collectives() -> str:
    """Two processes add a number, as the workers of a training add their gradients."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    context = get_context("spawn")
    results = context.Queue()
    port = _free_port()
    both = [context.Process(target=_add, args=(backend, rank, port, results), daemon=True) for rank in (0, 1)]
    began = time.monotonic()
    for process in both:
        process.start()
    try:
        for process in both:
            process.join(max(0.0, SECONDS - (time.monotonic() - began)))
        sums = [results.get(timeout=1) for _ in both] if all(process.exitcode == 0 for process in both) else []
    finally:
        hung = any(process.is_alive() for process in both)
        for process in both:
            process.kill()
            process.join()
    if sums != [3.0, 3.0]:
        raise Ailment(
            f"two processes could not add a number with {backend}{f' in {SECONDS} s' if hung else ''}",
            "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to the network interface that the nodes share",
        )
    return f"{backend}: two processes agree"


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _add(backend: str, rank: int, port: int, results: object) -> None:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timedelta(seconds=SECONDS))
    dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    number = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(number)
    results.put(float(number))  # type: ignore[attr-defined]
    dist.barrier()
    dist.destroy_process_group()


def _ray() -> str:
    import ray

    from data_prep.cluster import ray_session
    from pipeline.cluster.resources import cpus_for

    address = os.environ.get("RAY_ADDRESS")
    with ray_session():
        total = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        has = f"{nodes} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        if not total.get("CPU"):
            try:
                cpus_for(1)
            except InputError:
                remedy = "start workers: `ray status` says what is asked for"
                raise Ailment(f"{has}: nothing can run", remedy) from None
            return f"the cluster at {address}: {has}; its autoscaler adds nodes when there is work"
        ray.get(ray.remote(num_cpus=1)(_process).remote(), timeout=SECONDS)
    where = f"the cluster at {address}" if address else "a local one can be started"
    return f"{where}: {has}; a task ran"


def _process() -> int:
    return os.getpid()


def place(storage: str | Path) -> str:
    """A probe is written, read back and removed."""
    root = Storage(storage)
    if root.local:
        existing = next(each for each in (root.local.absolute(), *root.local.absolute().parents) if each.exists())
        if not os.access(existing, os.W_OK):
            raise Ailment(f"{storage}: cannot be written", "give --storage a folder of yours")
        root = Storage(existing)
    folder = root / f"agman-doctor-{uuid.uuid4().hex[:8]}"
    data = os.urandom(PROBE)
    try:
        written = _seconds(lambda: _write_through(folder / "probe", data))
        same: list[bool] = []
        read = _seconds(lambda: same.append((folder / "probe").read_bytes() == data))
    finally:
        folder.delete()
    if not all(same):
        raise Ailment(f"{root}: reads back other bytes than were written", "do not trust it with checkpoints")
    rates = f"{root}: writes {PROBE / 1e6 / written:,.0f} MB/s, reads {PROBE / 1e6 / read:,.0f} MB/s"
    if PROBE / 1e6 / max(written, read) < SLOW:
        raise Ailment(
            f"{rates}; under {SLOW:g} MB/s", "checkpoints will be late: take a nearer place, or raise checkpoint_every"
        )
    if root.local and (free := shutil.disk_usage(root.local).free) < ROOM:
        raise Ailment(f"{rates}; {free / 2**30:.1f} GiB free", f"make room for {ROOM / 2**30:.0f} GiB")
    return rates


def _write_through(file: Storage, data: bytes) -> None:
    file.write_bytes(data)
    if file.local:  # or the speed is the memory's
        with file.local.open("rb") as written:
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to be read from the disk, too


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def _tracking() -> str:
    from pipeline.tracking import runs as tracking

    shown = tracking.without_credentials(tracking.tracking_uri())
    client = tracking.connect()
    known = client.get_experiment_by_name(EXPERIMENT)  # deleted ones too: they keep their names
    if known:
        client.restore_experiment(known.experiment_id)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    try:
        run = client.create_run(experiment)
        client.log_metric(run.info.run_id, "probe", 1.0)
        client.set_terminated(run.info.run_id)
        client.delete_run(run.info.run_id)
    finally:
        client.delete_experiment(experiment)
    return f"{shown}: a run was written and removed"


def _dataset(data: str | Path, progress: Progress) -> str:
    """Every table is there, and every packed picture of every shard is read and decoded."""
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    count = dict.fromkeys(dataset.info.images, 0)
    advance = progress("pictures read", sum(dataset.info.images.values()))
    for split in count:
        for table in dataset.packed(split):
            rows = zip(*table.to_pydict().values(), strict=True)
            broken = [image for image, jpeg in rows if not _decodes(jpeg)]
            if broken:
                raise Ailment(
                    f"{dataset.path}: picture {broken[0]} of split {split} is damaged", "run `agman prep` again"
                )
            count[split] += table.num_rows
            advance(table.num_rows)
        if count[split]:
            dataset.triplets(split)
    if len(dataset.labels) and not set(dataset.labels["image_id"]) <= set(dataset.images["image_id"]):
        raise Ailment(f"{dataset.path}: labels name pictures that are not there", "run `agman prep` again")
    return f"{dataset.path}: {sum(count.values()):,} pictures, {dataset.info.digest[:12]}"


def _decodes(jpeg: bytes) -> bool:
    from data_prep.pictures import open_picture

    try:
        open_picture(jpeg).load()
    except Exception:  # a decoder may raise nearly anything
        return False
    return True
