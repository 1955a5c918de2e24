"""The cluster files: validity under Ray's and Kubernetes' schemas, and the rules that all of them keep."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.cluster.resources import GROWN

ROOT = Path(__file__).parents[3]
LAUNCHED = ["ray_cluster.yaml", "cluster/gcp.yaml", "cluster/on_premises.yaml"]
"""Files for `ray up`."""
KUBERNETES = ["cluster/kubernetes/raycluster.yaml", "cluster/kubernetes/rayjob.yaml"]
KUBERNETES_VERSION = "1.33"
PINNED = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

launched = pytest.mark.parametrize("file", LAUNCHED)


def load(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


def ray_schema() -> dict[str, Any]:
    """Return the schema that `ray up` validates with, without importing Ray."""
    ray = find_spec("ray")
    assert ray is not None and ray.origin
    return json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())


@launched
def test_ray_up_accepts_the_file(file: str) -> None:
    config = load(file)
    jsonschema.validate(config, ray_schema())
    kinds = config.get("available_node_types", {})
    assert config.get("head_node_type") in kinds or config["provider"]["type"] == "local"
    assert sum(kind.get("min_workers", 0) for kind in kinds.values()) <= config["max_workers"]


@launched
def test_ray_and_the_project_are_pinned(file: str) -> None:
    (install,) = [line for line in load(file)["setup_commands"] if "ray==" in line]
    assert f" ray=={PINNED['ray']} " in install
    assert f" agman-pipeline=={VERSION} " in install
    assert "--constraint ~/agman-pipeline/constraints.txt" in install
    assert "ray-wheels" not in (ROOT / file).read_text()


@launched
def test_nothing_listens_on_all_interfaces_or_without_a_token(file: str) -> None:
    config = load(file)
    assert "0.0.0.0" not in (ROOT / file).read_text()
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    (server,) = [c for c in config["head_start_ray_commands"] if "mlflow.sh start" in c]
    assert "start $(hostname -I | cut -d' ' -f1) " in server  # the private address


@pytest.mark.parametrize("file", LAUNCHED[:2])
def test_gpu_workers_are_bought_on_demand_and_spot(file: str) -> None:
    kinds = load(file)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    for kind, market in {"gpu_on_demand": "on-demand", "gpu_spot": "spot"}.items():
        assert kinds[kind]["resources"]["GPU"] == 1
        assert kinds[kind]["labels"]["market-type"] == market
        assert kinds[kind]["max_workers"] > kinds[kind]["min_workers"]
        assert ("spot" in str(kinds[kind]["node_config"]).lower()) == (market == "spot")


@pytest.mark.parametrize("file", LAUNCHED[:2])
def test_jobs_know_the_size_of_the_grown_cluster(file: str) -> None:
    config = load(file)
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    told = json.loads(shlex.split(start.partition(f"{GROWN}=")[2])[0])
    workers = [kind for name, kind in config["available_node_types"].items() if name != "head"]
    assert told.pop("nodes") == min(config["max_workers"], sum(kind["max_workers"] for kind in workers))
    assert all(kind["resources"] == told for kind in workers)


def test_kubernetes_jobs_know_the_size_of_the_grown_cluster() -> None:
    spec = documents(KUBERNETES[0])["RayCluster"]["spec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    told = json.loads(next(one["value"] for one in head["env"] if one["name"] == GROWN))
    assert told["nodes"] == sum(group["maxReplicas"] for group in spec["workerGroupSpecs"])
    for group in spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert str(told["CPU"]) == resources["requests"]["cpu"]
        assert str(told["GPU"]) == resources["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("file", LAUNCHED + KUBERNETES)
def test_the_file_contains_no_secret(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(
        r"AKIA|PRIVATE KEY|(password|secret|token|access_key)\s*[:=]\s*['\"]?\w{8,}", text, re.IGNORECASE
    )


def documents(file: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / file).read_text())}


CLUSTERS = {
    "raycluster": documents(KUBERNETES[0])["RayCluster"]["spec"],
    "rayjob": documents(KUBERNETES[1])["RayJob"]["spec"]["rayClusterSpec"],
}


@pytest.mark.parametrize("spec", CLUSTERS.values(), ids=CLUSTERS)
def test_kuberay_clusters_have_the_required_fields(spec: dict[str, Any]) -> None:
    """Checked by hand: no package contains KubeRay's schema."""
    assert spec["rayVersion"] == PINNED["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert "dashboard-host" not in head["rayStartParams"]
    assert head["template"]["spec"]["containers"][0]["name"] == "ray-head"
    for group in workers:
        assert group["template"]["spec"]["containers"][0]["name"] == "ray-worker"
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert re.fullmatch(r"[a-z][a-z0-9-]*", group["groupName"])
    for group in [head, *workers]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f":{VERSION}-ray{PINNED['ray']}")
        _validate_pod(group["template"])


def _validate_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | deepcopy(template)
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


def test_the_network_policy_is_valid() -> None:
    kubernetes_validate.validate(documents(KUBERNETES[0])["NetworkPolicy"], KUBERNETES_VERSION, strict=True)


def test_the_job_is_removed_at_its_end_and_retried_once() -> None:
    job = documents(KUBERNETES[1])["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["entrypoint"].startswith("agman train ")
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["backoffLimit"] == 1


def test_the_image_has_the_pinned_versions() -> None:
    text = (ROOT / "cluster/kubernetes/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311-gpu" in text
    assert f" ray=={PINNED['ray']} agman-pipeline=={VERSION} " in text
