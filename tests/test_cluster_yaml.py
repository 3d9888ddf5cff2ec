"""`cluster.yaml` passes the checks that `ray up` makes before it talks to AWS, and keeps to what the job relies on."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` sees it: with Ray's defaults filled in, and validated."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    return whole


def commands(config: dict[str, Any]) -> str:
    return "\n".join(line for key, lines in config.items() if key.endswith("_commands") for line in lines)


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    whole = prepared(config)
    # All that could cost money is said in the file, and nothing is left to defaults that may change.
    assert whole["max_workers"] == config["max_workers"]
    assert whole["idle_timeout_minutes"] == config["idle_timeout_minutes"] <= 10
    assert whole["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("path", ["idle_timeout_minute", "available_node_types.gpu.min_worker", "auth.user"])
def test_ray_refuses_a_misspelt_key(config: dict[str, Any], path: str) -> None:
    broken = copy.deepcopy(config)
    place: Any = broken
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = 1
    with pytest.raises(jsonschema.ValidationError, match=last):
        prepared(broken)


def test_the_head_does_no_work_and_workers_come_when_needed(config: dict[str, Any]) -> None:
    types = prepared(config)["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # the driver would go with it
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    gpu = {name: kind for name, kind in types.items() if kind["resources"].get("GPU")}
    assert gpu
    assert all(kind["min_workers"] == 0 for kind in gpu.values())
    assert any(kind["min_workers"] > 0 for name, kind in types.items() if name not in gpu)  # see `plan_actors`
    assert all(kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) == config["max_workers"]


def test_all_nodes_are_of_one_kind(config: dict[str, Any]) -> None:
    nodes = [kind["node_config"] for kind in config["available_node_types"].values()]
    for key in ("ImageId", "IamInstanceProfile", "BlockDeviceMappings"):
        assert all(node[key] == nodes[0][key] for node in nodes), key


def test_versions_are_those_of_the_repository(config: dict[str, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (pinned,) = re.findall(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    text = (REPOSITORY / "cluster.yaml").read_text()  # with its comments, which people copy from
    assert set(re.findall(r"ray\[[a-z,]+\]==([\d.]+\d)", text)) == {pinned}
    assert set(re.findall(r"tokloss_ray-([\d.]+)-py3", text)) == {project["version"]}
    assert commands(config).count("-c ~/tokloss/constraints.txt") == commands(config).count("pip install")
    (python,) = set(re.findall(r"python(3\.\d+)", commands(config)))
    assert f"Python :: {python}" in "\n".join(project["classifiers"])


def test_only_those_with_the_token_are_let_in(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [line for line in commands(config).splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in commands(config)


def test_mounted_files_are_installed_or_known(config: dict[str, Any]) -> None:
    """A path that is mistyped in one of two places shows only after minutes, on the node."""
    for remote in config["file_mounts"]:
        assert remote in commands(config), remote
