"""Trainings on several nodes that come and go, and in an object store: all end with the undisturbed weights."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.nodes import Nodes
from support.s3_server import Bucket
from support.trainings import (
    STEPS,
    STEPS_AN_EPOCH,
    Command,
    Undisturbed,
    check,
    processes,
    run_of,
    trainings,
)

from agman.tagger import TAGGER
from data_prep.errors import StorageError
from pipeline.training.checkpoints import MARKER, Checkpoints

pytestmark = pytest.mark.slow


def test_a_killed_node_is_replaced_by_another(
    command: Callable[..., Command], nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    both = [nodes.add(), nodes.add()]
    running = command("--workers", "2", address=nodes.address)
    running.wait_for_step(5)
    (holder, _) = both
    assert len(nodes.workers(holder)) == 1
    nodes.kill(holder)
    added = nodes.add()
    running.finish()
    assert added in nodes.cluster.worker_nodes
    check(tmp_path, undisturbed)


def test_ctrl_c_while_workers_wait_for_a_node(
    command: Callable[..., Command], nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    node = nodes.add()
    running = command("--workers", "1", address=nodes.address)
    running.wait_for_step(5)
    nodes.kill(node)
    saved = max(checkpoint.step for checkpoint in running.checkpoints())
    running.process.send_signal(signal.SIGINT)
    said = running.finish(130)
    assert said.strip().splitlines()[-1] == f"agman: interrupted: saved at step {saved}; the same command continues"
    assert run_of(tmp_path).info.status == "KILLED"
    running.wait_for_the_end()
    nodes.add()
    said = command("--workers", "1", address=nodes.address).finish()
    assert f"from step {saved}" in said
    check(tmp_path, undisturbed)


def test_ctrl_c_while_workers_start(command: Callable[..., Command], tmp_path: Path) -> None:
    running = command("--workers", "2")
    running.wait(lambda: "starting the workers" in running.said)
    running.process.send_signal(signal.SIGINT)
    last = running.finish(130).strip().splitlines()[-1]
    how = r"(saved at step \d+|before the first step was saved)"
    assert re.fullmatch(rf"agman: interrupted: {how}; the same command continues", last)
    assert run_of(tmp_path).info.status == "KILLED"
    running.wait_for_the_end()


def test_an_elastic_training_continues_with_one_worker_after_a_node_is_lost(
    command: Callable[..., Command], nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    kept, lost = nodes.add(), nodes.add()
    time.sleep(25)  # every twenty seconds Ray looks what nodes there are for an elastic training
    running = command("--workers", "1-2", address=nodes.address, without=("micro_batches",))
    running.wait_for_step(5)
    assert [len(nodes.workers(node)) for node in (kept, lost)] == [1, 1]
    nodes.kill(lost)
    running.finish()
    check(tmp_path, undisturbed)
    (place,) = trainings(tmp_path)
    assert json.loads((place / "training.json").read_bytes())["settings"]["micro_batches"] == 2


def test_an_elastic_training_grows_after_a_node_is_added(
    command: Callable[..., Command], nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Ray considers growing a minute after the workers' start: the worker is made to wait for that."""
    first = nodes.add()
    running = command("--workers", "1-2", address=nodes.address, without=("micro_batches",))
    running.wait_for_step(5)
    (worker,) = nodes.workers(first)
    os.kill(worker, signal.SIGSTOP)
    second = nodes.add()
    time.sleep(70)
    with suppress(ProcessLookupError):  # Ray may have ended it already
        os.kill(worker, signal.SIGCONT)
    running.wait(lambda: [len(nodes.workers(node)) for node in (first, second)] == [1, 1])
    saved = max(checkpoint.step for checkpoint in running.checkpoints())
    assert saved < STEPS, "the training had ended before it grew"
    running.finish()
    check(tmp_path, undisturbed)


def test_a_training_in_an_object_store(
    command: Callable[..., Command], bucket: Bucket, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A worker is killed in mid-epoch, and the weights' uploads fail for a while."""
    storage = bucket.uri("runs").replace("s3://", "s3://access:sesame@")
    running = command("--workers", "2", "--json", storage=storage)
    running.wait_for_step(5)
    workers = processes("ray::RayTrainWorker", running.process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    (place,) = trainings(tmp_path, storage)
    kept = Checkpoints(place / "checkpoints")
    bucket.failing, bucket.code = r"/checkpoints/.*\.safetensors", 403
    running.wait(lambda: bucket.failed)
    bucket.failing = None
    opened: set[str] = set()
    while running.process.poll() is None:
        for checkpoint in kept.complete():
            with suppress(StorageError), kept.opened(checkpoint) as folder:  # it may be removed meanwhile
                assert {path.name: path.stat().st_size for path in folder.iterdir()} == checkpoint.files
                opened.add(str(checkpoint.path))
        time.sleep(0.5)
    assert len(opened) > 1
    running.finish()
    check(tmp_path, undisturbed, storage)
    _check_bucket(bucket, kept)
    figures = running.figures
    assert figures["checkpoint"].startswith("s3://bucket/runs/")
    assert str(kept.best().path) == figures["checkpoint"]  # type: ignore[union-attr]
    assert figures["model_uri"] == "models:/agman-tiny/1"
    for text in (running.said, running.out.read_text()):
        assert "sesame" not in text
        assert "endpoint_override" not in text


def _check_bucket(bucket: Bucket, kept: Checkpoints) -> None:
    """The last checkpoint and the two best are left, nothing else; every marker came after its files.

    When the training has ended, the best checkpoint gets the prototypes.
    """
    whole = kept.complete()
    assert [one.step for one in whole if one.score is not None] == [STEPS_AN_EPOCH, STEPS]
    assert [one.step for one in whole] == [STEPS_AN_EPOCH, STEPS]
    names = {str(one.path).rpartition("/")[2]: one for one in whole}
    objects = [key for key in bucket.keys if "/checkpoints/" in key and not key.endswith("/")]
    assert {key.split("/checkpoints/")[1].split("/")[0] for key in objects} == set(names)
    for name, checkpoint in names.items():
        written = [key.split(f"{name}/")[1] for key in bucket.puts if f"/{name}/" in key and not key.endswith("/")]
        if str(checkpoint.path) == str(kept.best().path):  # type: ignore[union-attr]
            assert written.pop() == TAGGER
        assert written[-1] == MARKER
        assert set(written[:-1]) == set(checkpoint.files)


def test_a_killed_driver_is_continued_from_the_object_store(
    command: Callable[..., Command], bucket: Bucket, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    storage = bucket.uri("runs")
    running = command("--workers", "2", storage=storage)
    running.wait_for_step(5)
    running.look()
    running.process.kill()
    running.process.wait()
    running.wait_for_the_end()
    saved = max(checkpoint.step for checkpoint in running.checkpoints())
    said = command("--workers", "2", storage=storage).finish()
    assert f"from step {saved}" in said
    check(tmp_path, undisturbed, storage)
