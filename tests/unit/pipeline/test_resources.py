"""Division of a cluster's CPUs and GPUs among the workers of a job."""

from __future__ import annotations

import pytest

from data_prep.errors import InputError
from pipeline.cluster import resources
from pipeline.cluster.resources import GROWN, cpus_for, cpus_for_elastic, gpu_share, gpus_for


def set_nodes(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    """Set the nodes of the cluster, and add a large one that is lost."""
    rows = [{"Alive": True, "Resources": node} for node in nodes]
    lost = {"Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(resources, "_ray_nodes", lambda: [*rows, lost])


@pytest.mark.parametrize(
    ("nodes", "least", "most", "share"),
    [
        ((8,), 1, 1, 8),
        ((8,), 1, 3, 2),
        ((8,), 2, 20, 1),  # room for eight
        ((4, 4), 1, 2, 4),
        ((4, 4), 1, 3, 2),
        ((3, 1), 1, 2, 1),  # a worker's CPUs are on one node
        ((5, 2), 1, 3, 2),
        ((2, 2), 3, 64, 1),
        ((0, 6), 1, 2, 3),  # a head without CPUs
    ],
)
def test_elastic_workers_share_the_cpus_of_the_largest_possible_group(
    monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, ...], least: int, most: int, share: int
) -> None:
    set_nodes(monkeypatch, *({"CPU": float(count)} if count else {"memory": 1.0} for count in nodes))
    assert cpus_for_elastic(least, most) == share
    if least == most or most <= sum(nodes):
        assert cpus_for(most) == share


@pytest.mark.parametrize(("nodes", "total"), [((1.0, 1.0), 2), ((0.0,), 0), ((), 0)])
def test_fewer_cpus_than_the_smallest_group_are_refused(
    monkeypatch: pytest.MonkeyPatch, nodes: tuple[float, ...], total: int
) -> None:
    set_nodes(monkeypatch, *({"CPU": count} for count in nodes))
    with pytest.raises(InputError, match=f"^--workers 3: the cluster has {total} CPUs, and each needs one$"):
        cpus_for_elastic(3, 5)


@pytest.mark.parametrize(
    ("workers", "share"),
    [(1, 8), (2, 8), (4, 4)],  # four share the two GPUs, two on each node
)
def test_gpu_workers_get_the_cpus_of_the_nodes_with_gpus(
    monkeypatch: pytest.MonkeyPatch, workers: int, share: int
) -> None:
    set_nodes(monkeypatch, {"CPU": 32.0}, *[{"CPU": 8.0, "GPU": 1.0}] * 2)
    assert cpus_for(workers) == share
    assert cpus_for_elastic(1, 64) == 8


def test_gpus_on_nodes_without_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, {"CPU": 8.0}, {"GPU": 2.0})
    with pytest.raises(InputError, match=r"^--concurrent 2: the nodes with GPUs have too few CPUs"):
        cpus_for(2, "--concurrent")


def test_nodes_that_the_autoscaler_may_add_count(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, {"memory": 1.0})
    assert (cpus_for(1), gpus_for(1), gpu_share(4)) == (8, True, 0.25)
    with pytest.raises(InputError, match=r"^--workers 2: the cluster has 1 GPUs, and a worker needs one$"):
        gpus_for(2)
    monkeypatch.setenv(GROWN, '{"nodes": 3, "CPU": 8, "GPU": 1}')  # one of the three exists already
    assert (cpus_for(3), cpus_for(4), gpus_for(3), gpu_share(3), gpu_share(4)) == (8, 4, True, 1.0, 0.5)
    with pytest.raises(InputError, match=r"^--workers 4: the cluster has at most 3 GPUs, and a worker needs one$"):
        gpus_for(4)
    with pytest.raises(InputError, match=r"^--workers 25: the cluster has at most 24 CPUs"):
        cpus_for_elastic(25, 30)


@pytest.mark.parametrize("text", ["8", "[8, 8, 1]", '{"CPU": 8}', '{"nodes": "many"}', "{"])
def test_a_malformed_variable_for_the_grown_cluster_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(GROWN, text)
    set_nodes(monkeypatch)
    with pytest.raises(InputError, match=f"^{GROWN}=.*: give it as "):
        cpus_for(1)
