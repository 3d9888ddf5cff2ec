"""`jobs/rayjob.yaml` is what KubeRay takes, gives Ray the nodes that the job plans with, and ends by itself."""

from __future__ import annotations

import copy
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.kuberay import RAY_JOB, differences, published
from tokloss_ray.config import ScoreConfig, make_config
from tokloss_ray.scoring.on_ray.hardware import RESERVED_CPUS, Hardware, plan_actors

ROOT = Path(__file__).resolve().parents[1]
DEFINITION = os.environ.get("TOKLOSS_KUBERAY_CRD", "")


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "jobs" / "rayjob.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[1]


@pytest.fixture(scope="module")
def cluster(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]


@pytest.fixture(scope="module")
def settings(documents: list[dict[str, Any]]) -> ScoreConfig:
    content = yaml.safe_load(documents[0]["data"]["score.yaml"])
    return make_config({key.replace("-", "_"): value for key, value in content.items()})


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {"head": cluster["headGroupSpec"], **{g["groupName"]: g for g in cluster["workerGroupSpecs"]}}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def test_kuberay_takes_it(job: dict[str, Any]) -> None:
    jsonschema.validate(job, RAY_JOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", job["metadata"]["name"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofflimit", 2),
        ("spec.backoffLimit", "2"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),  # a number is refused there
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 4),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.toleration", []),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
    ],
)
def test_kuberay_refuses_what_is_misspelt(job: dict[str, Any], path: str, value: Any) -> None:
    broken = copy.deepcopy(job)
    place: Any = broken
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, RAY_JOB)


@pytest.mark.skipif(not DEFINITION, reason="TOKLOSS_KUBERAY_CRD names no file with KubeRay's definition of a RayJob")
def test_the_operators_own_schema_takes_it(job: dict[str, Any]) -> None:
    schema = published(yaml.load(Path(DEFINITION).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    jsonschema.validate(job, schema)
    assert differences(RAY_JOB, schema) == []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "spec": {**job["spec"], "backofflimit": 2}}, schema)


def test_it_ends_by_itself(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["activeDeadlineSeconds"] > 0
    assert 0 < spec["backoffLimit"] <= 3


def test_ray_sees_the_nodes_that_the_job_plans_with(cluster: dict[str, Any], settings: ScoreConfig) -> None:
    """As the autoscaler reads the file: the head works on nothing, GPU nodes come on demand, and actors fit on them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    metadata = {"name": "tokloss", "namespace": "default"}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster})
    validate_config(config)
    types = config["available_node_types"]
    resources = {name: kind["resources"] for name, kind in types.items()}
    assert resources[config["head_node_type"]]["CPU"] == 0
    gpu, cpu = resources["gpu"], resources["cpu"]
    assert (gpu["GPU"], cpu.get("GPU", 0)) == (1, 0)
    assert (types["gpu"]["min_workers"], types["cpu"]["min_workers"] > 0) == (0, True)
    assert config["idle_timeout_minutes"] == 5
    # At first there is the CPU node alone; later a GPU node holds its actors and leaves CPUs for encode and commit.
    for nodes in (Hardware((0, cpu["CPU"]), (0, 0), True), Hardware((0, cpu["CPU"], gpu["CPU"]), (0, 0, 1), True)):
        actors = plan_actors(settings, nodes)
        assert (actors.low, actors.high, actors.num_gpus) == (1, types["gpu"]["max_workers"], 1)
        assert actors.num_cpus <= gpu["CPU"] - RESERVED_CPUS


def test_settings_are_mounted_where_the_job_looks(job: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    program, command, option, path = shlex.split(job["spec"]["entrypoint"])
    assert (program, command, option) == ("tokloss", "score", "--config")
    head = pods(job["spec"]["rayClusterSpec"])["head"]
    (mount,) = (m for m in head["containers"][0]["volumeMounts"] if m["name"] == "settings")
    assert path == f"{mount['mountPath']}/{next(iter(documents[0]['data']))}"
    (volume,) = (v for v in head["volumes"] if v["name"] == "settings")
    assert volume["configMap"]["name"] == documents[0]["metadata"]["name"]


def test_keys_are_a_mounted_file_on_every_node(cluster: dict[str, Any]) -> None:
    for name, pod in pods(cluster).items():
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == mounts.keys(), name
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert env["AWS_SHARED_CREDENTIALS_FILE"] == f"{mounts['s3']['mountPath']}/credentials"
        assert mounts["s3"]["readOnly"] is True
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & env.keys()
        (secret,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "s3")
        assert secret == {"secretName": "tokloss-s3"}


def test_workers_may_be_spot_and_the_head_may_not(cluster: dict[str, Any]) -> None:
    spots = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    head, gpu, cpu = (pods(cluster)[name] for name in ("head", "gpu", "cpu"))
    tolerated = [{toleration["key"] for toleration in pod.get("tolerations", [])} for pod in (head, gpu, cpu)]
    assert tolerated[0] == set()
    assert tolerated[1] - tolerated[2] == {"nvidia.com/gpu"}  # no CPU pod takes a GPU node's place
    assert spots < tolerated[2]
    (term,) = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert spots < {expression["key"] for expression in term["matchExpressions"]}


def test_it_speaks_of_the_versions_of_the_repository(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (ray,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert cluster["rayVersion"] == ray
    image = (ROOT / "jobs" / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:ray:|==)([\d.]+\d)", image)) == {ray}
    (python,) = re.findall(r"-py3(\d+)$", image, re.MULTILINE)
    assert f"Python :: 3.{python}" in "\n".join(project["classifiers"])
    images = {container["image"] for pod in pods(cluster).values() for container in pod["containers"]}
    assert [name.rpartition(":")[2] for name in images] == [project["version"]]
    assert set(re.findall(r"tokloss(?:_ray-|:)(\d[\d.]*\d)", image)) == {project["version"]}


def test_all_pods_take_what_they_ask_for(cluster: dict[str, Any]) -> None:
    """KubeRay tells Ray the limits, and Kubernetes schedules by the requests; memory above them is taken away again."""
    for pod in pods(cluster).values():
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert pod["securityContext"]["runAsNonRoot"] is True
