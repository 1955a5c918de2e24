"""What a cluster gives to the workers of a job."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from data_prep.errors import InputError
from pipeline.cluster.resources import GROWN, cpus_for, cpus_for_elastic, gpu_share, gpus_for, orphans_removed


def of_cpus(monkeypatch: pytest.MonkeyPatch, *cpus: float) -> None:
    """A cluster of nodes with so many CPUs, and a large one that is lost."""
    nodes = [{"Alive": True, "Resources": {"CPU": count} if count else {"memory": 1.0}} for count in cpus]
    lost = {"Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])


@pytest.mark.parametrize(
    ("nodes", "least", "most", "share"),
    [
        ((8,), 1, 1, 8),
        ((8,), 1, 3, 2),
        ((8,), 2, 20, 1),  # room for eight
        ((4, 4), 1, 2, 4),
        ((4, 4), 1, 3, 2),
        ((3, 1), 1, 2, 1),  # none is cut over two nodes
        ((5, 2), 1, 3, 2),
        ((2, 2), 3, 64, 1),
        ((0, 6), 1, 2, 3),  # a head without any
    ],
)
def test_an_elastic_worker_gets_what_the_largest_group_there_is_room_for_leaves_to_each(
    monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, ...], least: int, most: int, share: int
) -> None:
    of_cpus(monkeypatch, *map(float, nodes))
    assert cpus_for_elastic(least, most) == share
    if least == most or most <= sum(nodes):
        assert cpus_for(most) == share


@pytest.mark.parametrize(("nodes", "total"), [((1.0, 1.0), 2), ((0.0,), 0), ((), 0)])
def test_too_few_cpus_for_the_least_are_refused(
    monkeypatch: pytest.MonkeyPatch, nodes: tuple[float, ...], total: int
) -> None:
    of_cpus(monkeypatch, *nodes)
    with pytest.raises(InputError, match=f"^--workers 3: the cluster has {total} CPUs, and each needs one$"):
        cpus_for_elastic(3, 5)


def test_of_a_real_cluster_of_one_node_one_worker_gets_all(ray_started: None) -> None:
    assert cpus_for_elastic(1, 1) == int(ray.cluster_resources()["CPU"])


@pytest.mark.parametrize(
    ("workers", "share"),
    [(1, 8), (2, 8), (4, 4)],  # four share the two GPUs, two on each node
)
def test_workers_on_gpus_get_cpus_of_the_nodes_that_have_them(
    monkeypatch: pytest.MonkeyPatch, workers: int, share: int
) -> None:
    gpu = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 32.0}}, gpu, gpu])
    assert cpus_for(workers) == share
    assert cpus_for_elastic(1, 64) == 8


def test_gpus_without_cpus_beside_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {"GPU": 2.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(InputError, match=r"^--concurrent 2: the nodes with GPUs have too few CPUs"):
        cpus_for(2, "--concurrent")


def test_what_the_autoscaler_may_add_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"memory": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert (cpus_for(1), gpus_for(1), gpu_share(4)) == (8, True, 0.25)
    with pytest.raises(InputError, match=r"^--workers 2: the cluster has 1 GPUs, and a worker needs one$"):
        gpus_for(2)
    monkeypatch.setenv(GROWN, '{"nodes": 3, "CPU": 8, "GPU": 1}')  # one of them is there
    assert (cpus_for(3), cpus_for(4), gpus_for(3), gpu_share(3), gpu_share(4)) == (8, 4, True, 1.0, 0.5)
    with pytest.raises(InputError, match=r"^--workers 4: the cluster has at most 3 GPUs, and a worker needs one$"):
        gpus_for(4)
    with pytest.raises(InputError, match=r"^--workers 25: the cluster has at most 24 CPUs"):
        cpus_for_elastic(25, 30)


@pytest.mark.parametrize("text", ["8", "[8, 8, 1]", '{"CPU": 8}', '{"nodes": "many"}', "{"])
def test_a_garbled_word_on_growth_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(GROWN, text)
    monkeypatch.setattr(ray, "nodes", list)
    with pytest.raises(InputError, match=f"^{GROWN}=.*: give it as "):
        cpus_for(1)


def test_groups_of_dead_actors_are_removed_and_no_others(ray_started: None) -> None:
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
            time.sleep(0.1)
        assert states() == ["REMOVED", "CREATED", "CREATED"]
        ray.kill(living)  # the end waits for it
    assert states() == ["REMOVED", "REMOVED", "CREATED"]
    remove_placement_group(ours)
