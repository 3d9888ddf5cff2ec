"""Datasets of the hub by name, against a hub of our own and with the real client."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.hub import PARQUET_BRANCH, TOKEN, Hub, Repo, hub_server
from tests.support.inline import Inline, score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import JobFailed, Refused

Run = Callable[..., Inline]
WORDS = ["Anna", "wohnt", "in", "Ulm"]
CARD = """---
configs:
- config_name: de
  default: true
  data_files:
  - split: train
    path: de/train-*.parquet
  - split: test
    path: de/test.parquet
- config_name: fr
  data_files: fr/*.parquet
dataset_info:
  config_name: fr
  features:
  - name: tokens
    list: string
  - name: ner_tags
    list:
      class_label:
        names:
          '0': B-LOC
          '1': O
          '2': B-PER
---
"""


def parquet(tags: list[Any], count: int = 3, rows_per_group: int = 1000) -> bytes:
    words = [[*WORDS, f"n{i}"] for i in range(count)]
    table = pa.table({"tokens": words, "ner_tags": [[*tags, tags[1]]] * count})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows_per_group, compression="none", use_dictionary=False)
    return file.getvalue()


NAMED = ["B-PER", "O", "O", "B-LOC"]
DE = {
    "README.md": CARD.encode(),
    "de/train-0.parquet": parquet(NAMED),
    "de/train-1.parquet": parquet(NAMED, 2),
    "de/test.parquet": parquet(NAMED, 1),
    "fr/x.parquet": parquet([2, 1, 1, 0]),
}
LINES = b'{"tokens": ["Anna"], "ner_tags": ["B-PER"]}\n'
LARGE = parquet(NAMED, 20_000, 5_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub_server({}) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with some datasets, where the clients of this process look for one."""
    import datasets
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    HfFileSystem.clear_instance_cache()
    server.repos.clear()
    server.repos |= {
        "org/several": Repo({"main": dict(DE)}),
        "org/one": Repo({"main": {"data/train-00000-of-00001.parquet": parquet(NAMED)}}),
        "org/lines": Repo({"main": {"a.jsonl": LINES}, PARQUET_BRANCH: {"default/train/0000.parquet": parquet(NAMED)}}),
        "org/partial": Repo({"main": {"a.jsonl": LINES}, PARQUET_BRANCH: {"default/partial-train/0.parquet": b""}}),
        "org/large": Repo({"main": {"train.parquet": LARGE}}),
        "org/gated": Repo({"main": {"train.parquet": parquet(NAMED)}}, gated=True),
        "org/pictures": Repo({"main": {"train/a.png": b"x"}}),
        "org/empty": Repo({"main": {"README.md": b"hi"}}),
    }
    server.requests.clear()
    server.tokens.clear()
    return server


def score_into(output: Path, model: Path, name: str, **settings: Any) -> Inline:
    return score_inline(ScoreConfig(model=str(model), input=(f"hf://datasets/{name}",), output=str(output), **settings))


def labels(found: Inline) -> list[list[str]]:
    return [[label for label in row["labels"] if label != "IGN"][:4] for row in found.rows]


def test_a_split_of_a_configuration(run: Run, hub: Hub) -> None:
    found = run("hf://datasets/org/several", split="train")
    assert [(row["source"], row["source_row"]) for row in found.rows] == [
        *(("de/train-0.parquet", i) for i in range(3)),
        *(("de/train-1.parquet", i) for i in range(2)),
    ]
    assert labels(found) == [NAMED] * 5
    assert found.rows[0]["example_id"] == "de/train-0.parquet:0"
    assert len(run("hf://datasets/org/several", dataset_config="de", split="test").rows) == 1


def test_names_of_tags_are_those_of_the_card(run: Run, hub: Hub) -> None:
    """The files of this configuration have integers and no features."""
    assert labels(run("hf://datasets/org/several", dataset_config="fr")) == [NAMED] * 3


def test_what_is_not_parquet_is_read_from_the_hub_s_conversion(run: Run, hub: Hub) -> None:
    found = run("hf://datasets/org/lines")
    assert {row["source"] for row in found.rows} == {"default/train/0000.parquet"}
    # A conversion of the first gigabytes is none, nor is one of another revision: the files themselves are read.
    assert {row["source"] for row in run("hf://datasets/org/partial").rows} == {"a.jsonl"}
    hub.repos["org/lines"].branches["old"] = {"a.jsonl": LINES * 2}
    assert len(run("hf://datasets/org/lines@old").rows) == 2


def test_files_of_a_repository(run: Run, hub: Hub) -> None:
    """By their own names, and by a glob, as on any file system."""
    assert {row["source"] for row in run("hf://datasets/org/lines/a.jsonl").rows} == {"a.jsonl"}
    found = run("hf://datasets/org/several@main/de/train-*.parquet")
    assert {row["source"] for row in found.rows} == {"train-0.parquet", "train-1.parquet"}
    assert not any(path.version == "" for unit in found.plan.units for path in unit.parts)


def test_files_are_read_by_ranges(run: Run, hub: Hub) -> None:
    """Of a unit its row groups, each byte once or twice, and nothing is downloaded."""
    found = run("hf://datasets/org/large", limit=4_000)
    assert len(found.rows) == 4_000
    ranges = [r for method, path, r in hub.requests if method == "GET" and path.endswith("train.parquet")]
    assert all(ranges)
    read = sum(int(r.split("-")[1]) - int(r.removeprefix("bytes=").split("-")[0]) + 1 for r in ranges if r)
    assert read < len(LARGE)
    assert not [path for method, path, _ in hub.requests if "tree" in path and method == "POST"]


def test_resuming_stays_at_the_commit(model: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = score_into(out, model, "org/one")
    (out / "_SUCCESS").unlink()
    hub.repos["org/one"].commits()
    hub.repos["org/one"].branches["main"] = {"data/train-00000-of-00001.parquet": parquet(NAMED, 7)}
    again = score_into(out, model, "org/one")
    assert again.plan.job.identity == first.plan.job.identity
    assert len(again.rows) == 3
    with pytest.raises(Refused, match="belongs to another run"):
        score_into(out, model, "org/one@main")
    assert len(score_into(out, model, "org/one", overwrite=True).rows) == 7


def test_a_gated_one_needs_the_token_of_its_reader(
    model: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"org/gated is gated: .* HF_TOKEN"):
        score_into(tmp_path / "out", model, "org/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = score_into(tmp_path / "out", model, "org/gated")
    assert len(found.rows) == 3
    assert hub.tokens == {None, f"Bearer {TOKEN}"}
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in repr(found.plan.job)


@pytest.mark.parametrize(
    ("uri", "settings", "said"),
    [
        ("org/none", {}, "no dataset org/none on the Hub; if it is private, log in"),
        ("org/one@v9", {}, "org/one has no revision v9"),
        ("org/several", {}, "org/several holds the splits train, test: choose one with --split"),
        ("org/several", {"split": "dev"}, "has no split dev (--split); it has train, test"),
        ("org/several", {"dataset_config": "it"}, "has no configuration it (--dataset-config); it has de, fr"),
        ("org/pictures", {}, "train/a.png, which is no format that is read"),
        ("org/empty", {}, "org/empty holds no data files"),
    ],
)
def test_refused(run: Run, hub: Hub, uri: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        run(f"hf://datasets/{uri}", **settings)
    assert said in str(caught.value)


def test_configurations_without_a_default(run: Run, hub: Hub) -> None:
    card = CARD.replace("  default: true\n", "").split("dataset_info")[0] + "---\n"
    hub.repos["org/several"].branches["main"]["README.md"] = card.encode()
    with pytest.raises(Refused, match="has the configurations de, fr: choose one with --dataset-config"):
        run("hf://datasets/org/several")


def test_no_hub(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Refused, match=r"cannot look org/one up: HF_HUB_OFFLINE is set"):
        run("hf://datasets/org/one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Refused, match=r"cannot look org/one up: the Hub does not respond"):
        run("hf://datasets/org/one")


def test_a_hub_that_fails_while_files_are_read(run: Run, hub: Hub, tmp_path: Path) -> None:
    def gone(model: Any) -> Any:
        hub.repos.clear()
        return model

    with pytest.raises(JobFailed, match="cannot read"):
        run("hf://datasets/org/large", wrap=gone)


def test_options_that_do_not_fit(run: Run, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(Refused, match="--dataset-config is for datasets of the Hub"):
        run(tmp_path / "a.jsonl", dataset_config="de")


SCRIPT = """
import sys
from tokloss_ray.inputs import hub, read
assert not {"datasets", "huggingface_hub"} & set(sys.modules), "imported before it is needed"
"""


def test_the_client_is_imported_when_it_is_needed() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


@pytest.mark.slow
def test_the_command(server: Hub, hub: Hub, model: Path, tmp_path: Path) -> None:
    """As users run it: HF_ENDPOINT and HF_TOKEN in the environment, workers that are processes of their own."""
    environment = os.environ | {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(model), "--output", str(out)]
    command += ["--input", "hf://datasets/org/gated", "--verbose"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert json.loads((out / "_SUCCESS").read_text())["rows"] == 3
