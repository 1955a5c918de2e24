"""`ray_cluster.yaml` against the installed Ray's own schema."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


def test_the_cluster_file_is_what_ray_up_accepts() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1


def test_rays_version_is_pinned_for_the_nodes() -> None:
    assert "constraints.txt" in (ROOT / "ray_cluster.yaml").read_text()
    assert re.search(r"^ray==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
