"""Resources of a real cluster, and removal of orphaned placement groups."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from support.commands import Agman
from support.galleries import embed_folder, jpeg, random_model

from agman.checkpoint import write_model
from data_prep import cluster
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.cluster import doctor, orphans, pool, resources
from pipeline.cluster.orphans import orphans_removed
from pipeline.cluster.resources import cpus_for_elastic


def test_one_worker_gets_all_cpus_of_a_single_node(ray_started: None) -> None:
    assert cpus_for_elastic(1, 1) == int(ray.cluster_resources()["CPU"])


def test_a_job_without_room_says_so_once_and_goes_on_when_there_is_some(
    ray_started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus, said = int(ray.cluster_resources()["CPU"]), list[str]()

    @ray.remote(num_cpus=cpus)
    class All:
        def same(self, job: int) -> int:
            return job

    holder = All.remote()
    ray.get(holder.__ray_ready__.remote())

    def hear(line: str) -> None:
        said.append(line)
        ray.kill(holder)

    monkeypatch.setattr(resources, "PATIENCE", 1.0)
    monkeypatch.setattr(pool, "say_above", hear)
    assert [*pool.each_on_workers(All.remote, 2, [7, 8], lambda actor, job: actor.same.remote(job))] == [7, 8]
    (line,) = said
    assert line.startswith("no worker is ready after 1 s: ") and f"free in the cluster: 0 of {cpus} CPUs" in line


def test_a_cluster_without_nodes_for_workers_has_no_free_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("available_resources", "cluster_resources"):
        monkeypatch.setattr(ray, name, lambda: {"memory": 1.0})  # Ray leaves out what a head has none of
    assert resources.no_room().endswith("free in the cluster: 0 of 0 CPUs")


def test_only_placement_groups_of_dead_actors_are_removed(ray_started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "INTERVAL", 0.05)

    @ray.remote(num_cpus=0)
    class Maker:
        def make(self) -> PlacementGroup:
            self.group = placement_group([{"CPU": 0.25}])
            ray.get(self.group.ready())
            return self.group

    def states() -> list[str]:
        return [placement_group_table(group)["state"] for group in (orphan, kept, ours)]

    dying, living = Maker.remote(), Maker.remote()
    with orphans_removed():
        ours = placement_group([{"CPU": 0.25}])
        orphan, kept = ray.get([dying.make.remote(), living.make.remote()])
        ray.get(ours.ready())
        assert states() == ["CREATED"] * 3
        ray.kill(dying)
        deadline = time.monotonic() + 30
        while states()[0] != "REMOVED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert states() == ["REMOVED", "CREATED", "CREATED"]
        ray.kill(living)  # the end of the block waits for the removal of its group
    assert states() == ["REMOVED", "REMOVED", "CREATED"]
    remove_placement_group(ours)


class _Page(BaseHTTPRequestHandler):
    def handle_one_request(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture
def not_ray(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address where a listener says nothing, or where one answers every line with HTTP."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("not_ray", ["silent", "HTTP"], indirect=True)
def test_what_is_no_cluster_is_given_up_in_time(not_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"^RAY_ADDRESS={not_ray}: no Ray cluster answers there in 1 s; give HOST:P"):
        cluster.check_cluster(not_ray)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("127.0.0.1:99999", ""),
        ("nowhere.invalid:6379", ""),
        ("nonsense", "Invalid address format"),
        ("http://127.0.0.1:8265", "GCS address"),
        (f"{'a' * 80}.:6379", ""),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_with_the_reason(address: str, why: str) -> None:
    with pytest.raises(InputError, match=f"^RAY_ADDRESS={re.escape(address)}: no Ray cluster.*{why}") as refused:
        cluster.check_cluster(address)
    assert len(str(refused.value).splitlines()) == 1


def test_a_cluster_is_joined(ray_started: None) -> None:
    cluster.check_cluster(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("command", ["train", "tune --trials 1", "compare", "doctor"])
def test_every_command_says_it_in_one_line(
    agman_here: Agman, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # it is, for the other tests
    monkeypatch.setattr(doctor, "PACKAGES", ())
    for name in ("_collectives", "_devices", "check_storage", "_tracking", "_dataset"):
        monkeypatch.setattr(doctor, name, lambda *_: "left out")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    settings = ["backbone=tiny"] if command != "doctor" else []
    done = agman_here(*command.split(), "--data", dataset.path, *settings)
    assert done.code == (1 if command == "doctor" else 2), done.err
    assert "Traceback" not in done.err
    assert [
        line
        for line in (done.out + done.err).splitlines()
        if "RAY_ADDRESS=nonsense: no Ray cluster answers there" in line
    ]


def test_embed_and_serve_say_it_too(agman_here: Agman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, description = random_model(["sleeve"])
    model, images = tmp_path / "model", tmp_path / "images"
    model.mkdir()
    images.mkdir()
    write_model(model, network.state_dict(), dict(network.config), description)
    (images / "a.jpg").write_bytes(jpeg(1))
    embed_folder(model, images, tmp_path / "gallery")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # it is, for the other tests
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    for typed in (("embed", model, "--images", images, "--out", "new"), ("serve", "gallery", "--port", "0")):
        done = agman_here(*typed)
        assert done.code == 2, done.err
        assert done.err.startswith("agman: RAY_ADDRESS=nonsense: no Ray cluster answers there")
        assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
