"""`agman doctor`: checks what a training needs, and says what to do about problems.

Every check is limited in time, leaves no changes behind, and reports one line: ok, or the problem and its remedy.
"""

from __future__ import annotations

import os
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
from platform import machine, python_version, system
from tempfile import TemporaryDirectory
from threading import Thread

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.common.errors import reason

SECONDS = 60
"""Time limit of a check, except for reading a dataset."""
PROBE = 32 << 20
"""Bytes that are written to the storage: the size of a small checkpoint."""
SLOW = 10.0
"""MB/s below which a storage is too slow: a checkpoint of ResNet-50 with its moments (0.4 GB) takes over 40 s."""
ROOM = 5 << 30
"""Free bytes that a local storage needs for a few checkpoints."""
EXPERIMENT = "agman-doctor"
"""MLflow experiment of the run that is written to the tracking store; both are deleted afterwards."""
DISTRIBUTION = "agman-pipeline"
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "optuna", "pandas", "pyarrow")


class Problem(Exception):
    """A problem and its remedy."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Finding:
    """Outcome of a check."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def examine(data: str | Path | None, storage: str | Path, progress: Progress = silent) -> Iterator[Finding]:
    """Run all checks, and yield the outcome of each as soon as it is known; the dataset's only if `data` is given."""
    yield finding("python", _python, "create the environment with a supported version of Python")
    for name in PACKAGES:
        yield finding(name, lambda name=name: check_package(name), "install agman-pipeline again")  # type: ignore[misc]
    yield finding("devices", _devices, "check CUDA_VISIBLE_DEVICES and the output of nvidia-smi")
    yield finding("collectives", _collectives, "training on one worker does not need collectives")
    yield finding("cluster", _ray, "start a cluster, or unset RAY_ADDRESS for a local one")
    yield finding("storage", _in_time(lambda: check_storage(storage)), "check the address and the permissions")
    yield finding(
        "mlflow store", _in_time(_tracking), "start the server, or set MLFLOW_TRACKING_URI to one that answers"
    )
    if data is not None:
        yield finding(
            "dataset", lambda: _dataset(data, progress), "give the folder that `agman prep` wrote, or run it again"
        )


def finding(name: str, check: Callable[[], str], remedy: str) -> Finding:
    """Run a check and return its outcome; `remedy` is for problems for which the check knows none."""
    try:
        return Finding(name, True, check())
    except Problem as problem:
        return Finding(name, False, str(problem), problem.remedy)
    except InputError as error:
        return Finding(name, False, str(error), remedy)
    except Exception as error:  # any exception on a broken machine is a finding
        return Finding(name, False, f"{type(error).__name__}: {reason(error)}", remedy)


def _in_time(check: Callable[[], str]) -> Callable[[], str]:
    """Return the check with a time limit of SECONDS, after which its thread is abandoned.

    Libraries wait for a silent server forever.
    """

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
            if outcome.done():  # the check itself has raised TimeoutError
                raise
            raise InputError(f"no answer in {SECONDS} s") from None

    return bounded


def _python() -> str:
    found, allowed = python_version(), SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"])
    if not allowed.contains(found, prereleases=True):
        raise InputError(f"{found}, but {allowed} is needed")
    return f"{found} ({allowed}) on {system()} {machine()}"


def check_package(name: str) -> str:
    """Return the version of a package and its allowed range. Raises Problem if it is missing or outside the range."""
    wanted = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    allowed = next(one.specifier for one in wanted if one.name == name)
    remedy = f'pip install "{name}{allowed}"'
    try:
        found = version(name)
    except PackageNotFoundError:
        raise Problem("is not installed", remedy) from None
    if not allowed.contains(found, prereleases=True):
        raise Problem(f"{found}, but {allowed} is needed", remedy)
    return f"{found} ({allowed})"


def _devices() -> str:
    cpus = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            raise Problem(
                f"{counted(cpus, 'CPU')}; there is an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU",
                "install the PyTorch build for the driver's CUDA version, or check CUDA_VISIBLE_DEVICES",
            )
        return f"{counted(cpus, 'CPU')}, no GPU"
    total = sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))
    names = sorted({torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())})
    x = torch.ones(1024, 1024, device="cuda")
    if float((x @ x)[0, 0]) != 1024:
        raise Problem(f"{names[0]}: a matrix product is wrong", "the GPU is defective; exclude it")
    return f"{cpus} CPUs, {torch.cuda.device_count()} × {', '.join(names)} ({total / 2**30:.0f} GiB)"


def _collectives() -> str:
    """Let two processes add a number, as the workers of a training add their gradients."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    context = get_context("spawn")
    with TemporaryDirectory() as folder:
        both = [context.Process(target=_add, args=(backend, rank, f"{folder}/store"), daemon=True) for rank in (0, 1)]
        deadline = time.monotonic() + SECONDS
        try:
            for process in both:
                process.start()
            for process in both:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            hung = any(process.is_alive() for process in both)
            for process in both:
                process.kill()
                process.join()
    if any(process.exitcode for process in both):
        raise Problem(
            f"two processes could not add a number with {backend}{f' in {SECONDS} s' if hung else ''}",
            "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to the network interface that connects the nodes",
        )
    return f"{backend}: two processes agree"


def _add(backend: str, rank: int, store: str) -> None:
    """Add 1 and 2 in a group of two processes. Raises ValueError for a wrong sum."""
    import torch.distributed as dist

    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    number = torch.tensor([rank + 1.0], device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(number)
    if float(number) != 3:
        raise ValueError(f"1 + 2 = {float(number)}")
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
        has = ", ".join([counted(nodes, "node"), *(counted(int(total.get(kind, 0)), kind) for kind in ("CPU", "GPU"))])
        if not total.get("CPU"):
            try:
                cpus_for(1)
            except InputError:
                remedy = "start workers; `ray status` shows the pending requests"
                raise Problem(f"{has}: nothing can run", remedy) from None
            return f"the cluster at {address}: {has}; its autoscaler adds nodes when there is work"
        ray.get(ray.remote(num_cpus=1)(lambda: None).remote(), timeout=SECONDS)
    where = f"the cluster at {address}" if address else "a local one can be started"
    return f"{where}: {has}; a task ran"


def check_storage(storage: str | Path) -> str:
    """Write a probe to the storage, read it back and remove it.

    Raises Problem if the storage cannot be written, returns other bytes, is slow or has little space.
    """
    root = Storage(storage)
    if root.local:
        existing = next(each for each in (root.local.absolute(), *root.local.absolute().parents) if each.exists())
        if not os.access(existing, os.W_OK):
            raise Problem(f"{storage}: cannot be written", "give --storage a folder that you may write to")
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
        raise Problem(f"{root}: returns other bytes than were written", "use another storage for checkpoints")
    rates = f"{root}: writes {PROBE / 1e6 / written:,.0f} MB/s, reads {PROBE / 1e6 / read:,.0f} MB/s"
    if PROBE / 1e6 / max(written, read) < SLOW:
        raise Problem(
            f"{rates}; under {SLOW:g} MB/s", "checkpoints take long: use a nearer storage, or raise checkpoint_every"
        )
    if root.local and (free := shutil.disk_usage(root.local).free) < ROOM:
        raise Problem(f"{rates}; {free / 2**30:.1f} GiB free", f"free {ROOM / 2**30:.0f} GiB")
    return rates


def _write_through(file: Storage, data: bytes) -> None:
    file.write_bytes(data)
    if file.local:  # otherwise the speed would be that of the page cache
        with file.local.open("rb") as written:
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, too


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def _tracking() -> str:
    from pipeline.tracking.runs import connect, shown_store, store_exists

    if not store_exists():
        return f"{shown_store()}: does not exist yet; the first training creates it"
    client = connect()
    known = client.get_experiment_by_name(EXPERIMENT)  # deleted experiments keep their names
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
    return f"{shown_store()}: a run was written and removed"


def _dataset(data: str | Path, progress: Progress) -> str:
    """Read every table, and decode every packed picture of every shard. Raises Problem if one is damaged."""
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    count = dict.fromkeys(dataset.info.images, 0)
    advance = progress("pictures read", sum(dataset.info.images.values()))
    for split in count:
        for table in dataset.packed(split):
            rows = zip(*table.to_pydict().values(), strict=True)
            broken = [image for image, jpeg in rows if not _decodes(jpeg)]
            if broken:
                raise Problem(
                    f"{dataset.path}: picture {broken[0]} of split {split} is damaged", "run `agman prep` again"
                )
            count[split] += table.num_rows
            advance(table.num_rows)
        if count[split]:
            dataset.triplets(split)
    if len(dataset.labels) and not set(dataset.labels["image_id"]) <= set(dataset.images["image_id"]):
        raise Problem(f"{dataset.path}: labels name pictures that do not exist", "run `agman prep` again")
    return f"{dataset.path}: {counted(sum(count.values()), 'picture')}, {dataset.info.digest[:12]}"


def _decodes(jpeg: bytes) -> bool:
    from data_prep.pictures import open_picture

    try:
        open_picture(jpeg).load()
    except Exception:  # decoders raise nearly any exception
        return False
    return True
