"""Resources of a real cluster, and removal of orphaned placement groups."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from pipeline.cluster import orphans
from pipeline.cluster.orphans import orphans_removed
from pipeline.cluster.resources import cpus_for_elastic


def test_one_worker_gets_all_cpus_of_a_single_node(ray_started: None) -> None:
    assert cpus_for_elastic(1, 1) == int(ray.cluster_resources()["CPU"])


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
