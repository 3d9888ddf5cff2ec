"""The whole job on a real Ray cluster of several nodes, submitted as a user does it, from and to object storage.

The nodes run the built wheel, in an environment where the editable installation of this checkout does not exist, and
jobs are submitted from a clean copy of the checkout. Endpoint and keys are in the environment of the nodes alone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.support.cluster import REPOSITORY, Cluster, cluster
from tests.support.inline import score_inline
from tests.support.s3_proxy import Proxy, proxied
from tests.support.s3_servers import moto_server
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL

pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CPUS = "--num-cpus=2"
ENCODE, COMMIT = "MapBatches(read_and_encode)", "MapBatches(decode_and_commit)"
ACTOR = "MapWorker(MapBatches(ScoreActor))"
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
SHARD_TOKENS = 4000
LATE = "key-of-the-late-node"  # the S3 server takes any
# Some 250 micro-batches: a model that is slow, but leaves the processor to the nodes' many processes.
SLOW_MODEL = {"TOKLOSS_FAULTS": "score.batch=stall:0.5"}
WAIT = 240


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone would hold."""
    folder = tmp_path_factory.mktemp("clone") / "tokloss_ray"
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=REPOSITORY, text=True)
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():  # one that was removed may still be listed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def python(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and with the packages of this one, but not its checkout."""
    folder = tmp_path_factory.mktemp("nodes")
    shutil.copytree(checkout, folder / "source")  # building leaves files behind
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source"]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("tokloss_ray-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    # Only now, so that pip does not find the package installed. A .pth file in a folder that is added so does nothing,
    # and it is one by which editable installations come in.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    ray = python.with_name("ray")
    ray.write_text(f"#!{python}\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return python


@dataclass
class Site:
    """A cluster of a head and two workers, with a bucket that holds the demo's corpus and model."""

    cluster: Cluster
    proxy: Proxy
    fs: s3fs.S3FileSystem
    bucket: str
    checkout: Path

    def submit(self, *words: str, output: str = "", job: str = "", script: str = "jobs/score.py") -> Job:
        """Score the corpus with a submitted job, and wait for its end; later words win."""
        job = job or f"test-{uuid.uuid4().hex[:8]}"
        args = [*self.settings(output), *words] if output else words
        options = [f"--submission-id={job}", f"--runtime-env={self.checkout}/jobs/runtime_env.yaml"]
        code, said = self.cluster.submit(args, None, *options, script=script, folder=self.checkout)
        return Job(job, code, said, self.cluster.get(f"/api/jobs/{job}"))

    def settings(self, output: str) -> list[str]:
        return [
            *("--model", f"{self.bucket}/model", "--input", f"{self.bucket}/in", "--output", output),
            *("--id-column", "id", "--shard-tokens", str(SHARD_TOKENS), "--actors", "4,6"),
        ]

    def commits(self, output: str) -> list[str]:
        return self.fs.glob(f"{output}/_commits/*.json")

    def rows(self, output: str) -> pa.Table:
        return table_of(f"{output.removeprefix('s3://')}/scores", self.fs)


@dataclass
class Job:
    """What became of a job: exit code and output of `ray job submit`, and the cluster's record."""

    name: str
    code: int
    said: str
    record: dict[str, Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 10,000 sentences of the demo in three files."""
    folder = tmp_path_factory.mktemp("corpus")
    table = pq.read_table(DATA)
    for number, start in enumerate((0, 3000, 7000)):
        part = table.slice(start, (3000, 4000, 3000)[number])
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=500)
    return folder


@pytest.fixture(scope="module")
def local(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and totals of the same job without a cluster."""
    output = tmp_path_factory.mktemp("local") / "out"
    score_inline(
        ScoreConfig(
            model=str(MODEL), input=(str(corpus),), output=str(output), id_column="id", shard_tokens=SHARD_TOKENS
        )
    )
    return table_of(f"{output}/scores"), json.loads((output / "_SUCCESS").read_text())


@pytest.fixture(scope="module")
def site(python: Path, checkout: Path, corpus: Path, local: tuple[pa.Table, dict[str, Any]]) -> Iterator[Site]:
    """The local run comes first: dozens of idle processes of a cluster make it three times as long."""
    with moto_server() as server, proxied(server.endpoint) as proxy:
        # Straight to the server: what the proxy sees comes from the nodes.
        fs = s3fs.S3FileSystem(
            endpoint_url=server.endpoint, key=server.key, secret=server.secret, use_listings_cache=False
        )
        name = f"tokloss-{uuid.uuid4().hex[:12]}"
        fs.mkdir(name)
        fs.put(f"{corpus}/", f"{name}/in/", recursive=True)
        for file in MODEL_FILES:
            fs.put(str(MODEL / file), f"{name}/model/{file}")
        env = server.env | {"AWS_ENDPOINT_URL": proxy.endpoint} | SLOW_MODEL
        with cluster([CPUS], [CPUS], env=env, python=python) as here:
            yield Site(here, proxy, fs, f"s3://{name}", checkout)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def table_of(path: str, fs: Any = None) -> pa.Table:
    table = pads.dataset(path, filesystem=fs, format="parquet").to_table()
    return table.sort_by([("example_id", "ascending"), ("window", "ascending")])


def until(ready: Callable[[], Any], job: Future[Job]) -> None:
    """Wait for something that a running job brings about."""
    deadline = time.monotonic() + WAIT
    while not ready():
        if job.done():
            pytest.fail(f"the job ended before that: {job.result().said[-3000:]}")
        assert time.monotonic() < deadline
        time.sleep(0.3)


def assert_same_rows(left: pa.Table, right: pa.Table) -> None:
    """Equal, but for the last digits of what a model computes in batches of another make-up."""
    assert left.schema.names == right.schema.names
    for name in left.schema.names:
        one, other = left[name].combine_chunks(), right[name].combine_chunks()
        if not pa.types.is_floating(getattr(one.type, "value_type", one.type)):
            assert one.equals(other), name
            continue
        if pa.types.is_list(one.type):
            assert one.value_lengths().equals(other.value_lengths()), name
            one, other = one.flatten(), other.flatten()
        np.testing.assert_allclose(one.to_numpy(False), other.to_numpy(False), rtol=1e-4, atol=1e-5, err_msg=name)


PROBE = """
import ray, tokloss_ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init()
def found():
    import tokloss_ray.scoring.pipeline
    return tokloss_ray.__file__
for node in ray.nodes():
    there = ray.remote(num_cpus=0)(found).options(scheduling_strategy=On(node['NodeID'], soft=False)).remote()
    print('FOUND', node['NodeManagerAddress'], ray.get(there))
"""


def test_where_the_code_comes_from(site: Site, python: Path) -> None:
    """What is uploaded wins; where nothing is uploaded, there is the wheel. This checkout is not to be seen."""
    uploaded = site.submit(PROBE, script="-c")
    paths = dict(re.findall(r"^FOUND (\S+) (\S+)$", uploaded.said, re.MULTILINE))
    assert paths.keys() == {node.ip for node in site.cluster.nodes}, uploaded.said
    folders = {node.ip: node.folder for node in site.cluster.nodes}
    for ip, path in paths.items():
        assert path.startswith(f"{folders[ip]}/"), path
        assert "/working_dir_files/" in path
    own = "import tokloss_ray; print('FOUND', tokloss_ray.__file__)"
    code, said = site.cluster.ray("job", "submit", "--", "python", "-c", own)
    assert code == 0, said
    assert re.search(rf"^FOUND {python.parents[1]}/lib/", said, re.MULTILINE), said


def test_whole_job(site: Site, background: ThreadPoolExecutor, local: tuple[pa.Table, dict[str, Any]]) -> None:
    """Submitted, scored by actors that share nodes, joined by a late node; equal to a local run."""
    here, output = site.cluster, f"{site.bucket}/out"
    site.proxy.seen.clear()
    running = background.submit(site.submit, output=output)
    until(lambda: site.commits(output), running)
    late = here.add_worker(CPUS, env={"AWS_ACCESS_KEY_ID": LATE})
    late_since = len(site.commits(output))
    job = running.result(WAIT)
    reads, late_reads = Counter(), Counter()
    for file in MODEL_FILES:
        for request in site.proxy.reads(f"/model/{file}"):
            (late_reads if LATE in request.headers["Authorization"] else reads)[file] += 1

    assert (job.code, job.record["status"], job.record["driver_exit_code"]) == (0, "SUCCEEDED", 0), job.said
    assert "Traceback" not in job.said
    assert re.search(r"^scoring: [\d,]+ of about \d+ shards, [\d,]+ tokens/s, \d+ s left$", job.said, re.MULTILINE)
    assert re.search(r"^rows +10,000 *$", job.said, re.MULTILINE), job.said

    rows, totals = local
    assert_same_rows(site.rows(output), rows)
    counts = {name: total for name, total in totals.items() if name != "loss_by_tag"}
    stored = json.loads(site.fs.cat(f"{output}/_SUCCESS"))
    assert {name: stored[name] for name in counts} == counts
    assert len(site.commits(output)) == counts["shards"] > late_since + 5

    # Neither address nor keys of the storage are part of the job's record.
    assert "AWS" not in json.dumps(job.record)

    # Three stages, none fused with its neighbour, and none on the head, which the driver alone uses.
    tasks = placed(here, "tasks", job)
    stages = {name for name in tasks if "read_and_encode" in name or "Score" in name or "decode_and_commit" in name}
    assert {name.partition(".")[0] for name in stages} == {ENCODE, COMMIT, ACTOR}
    workers = {node.ip for node in here.nodes} - {here.nodes[0].ip}
    for stage in (ENCODE, COMMIT):
        assert set(tasks[stage]) <= workers
        assert len(tasks[stage]) >= 2, tasks
    actors = placed(here, "actors", job)[ACTOR]
    assert set(actors) <= workers
    assert max(actors.values()) >= 2, actors
    assert 4 <= sum(actors.values()) <= 6, actors
    assert late.ip in tasks[ENCODE].keys() | tasks[COMMIT].keys() | tasks[f"{ACTOR}.submit"].keys(), tasks

    # Weights once per node with actors; the small files once more, for the preflight on the head. On the late node, an
    # actor may have been on its way when the last shard was given out.
    nodes = len(actors.keys() - {late.ip})
    assert nodes == 2
    assert reads == {file: nodes + (file != "model.safetensors") for file in MODEL_FILES}
    assert all(count == 1 for count in late_reads.values())


def placed(here: Cluster, kind: str, job: Job) -> Mapping[str, Counter[str]]:
    """How many tasks or actors of a job ran on which node, by name."""
    ips = {node["node_id"]: node["node_ip"] for node in here.state("nodes")}
    found: dict[str, Counter[str]] = {}
    for one in here.state(kind):
        if one["job_id"] == job.record["job_id"] and one["node_id"]:
            found.setdefault(one.get("class_name") or one["name"], Counter())[ips[one["node_id"]]] += 1
    return found


def test_wrong_column(site: Site) -> None:
    job = site.submit("--tokens-column", "nothing", output=f"{site.bucket}/none")
    assert (job.code, job.record["status"], job.record["driver_exit_code"]) == (1, "FAILED", 2), job.said
    sentence = one_sentence(job.said)
    assert "nothing" in sentence


def one_sentence(said: str) -> str:
    """The error that a person reads; there is only one, and no traceback."""
    assert "Traceback" not in said
    # Ray repeats the end of the output when a job has failed.
    (sentence,) = {line for line in said.splitlines() if line.startswith("error:")}
    return sentence


HIDE = 'mount -t tmpfs none "$0" && cp -r "$1" "$0/model" && cp -r "$2" "$0/in" && shift 2 && exec "$@"'


@pytest.mark.parametrize("setting", ["model", "input", "output"])
def test_what_only_the_driver_sees(site: Site, python: Path, corpus: Path, tmp_path: Path, setting: str) -> None:
    """A folder of the driver's machine alone: mounted where the nodes' processes do not look."""
    inside = ["unshare", "-m", "sh", "-c", HIDE, tmp_path, MODEL, corpus]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no rights to mount a file system that others do not see (unshare -m)")
    path = str(tmp_path / {"model": "model", "input": "in", "output": "out"}[setting])
    settings = [*site.settings(f"{site.bucket}/none-{setting}"), f"--{setting}", path]
    if setting == "input":  # may be repeated: leave the other one out
        settings[2:4] = []
    env = site.cluster.env | {"RAY_ADDRESS": site.cluster.address}
    done = subprocess.run(
        [*inside, python, "jobs/score.py", *settings],
        cwd=site.checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WAIT,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    sentence = one_sentence(done.stdout)
    assert re.match(rf"error: node 127\.0\.0\.1[2-9] does not see (the |--){setting} {path}", sentence), sentence
    assert not list(tmp_path.iterdir()), "the folder was hidden"


ROWS = 4000
FEW = ["--limit", str(ROWS), "--actors", "3"]


def first_rows(table: pa.Table, count: int) -> pa.Table:
    """Those of the first sentences of the corpus."""
    return table.filter(pc.is_in(table["example_id"], pq.read_table(DATA, columns=["id"])["id"].slice(0, count)))


def test_stopped_and_then_bereft_of_a_node(
    site: Site, background: ThreadPoolExecutor, local: tuple[pa.Table, dict[str, Any]], tmp_path: Path
) -> None:
    """A job is stopped. The same job again goes on; then a machine is gone, and with it one actor of three, for which
    there is no room on the others."""
    here, output, name = site.cluster, f"{site.bucket}/again", f"test-{uuid.uuid4().hex[:8]}"
    hasty = replace(site, checkout=tmp_path / "checkout")
    shutil.copytree(site.checkout, hasty.checkout)
    nodes = hasty.checkout / "tokloss_ray" / "scoring" / "on_ray" / "nodes.py"
    text, count = re.subn(r"NODE_LOSS_PATIENCE = [\d.]+", "NODE_LOSS_PATIENCE = 15.0", nodes.read_text())
    assert count == 1
    nodes.write_text(text)
    victim = here.nodes[3] if len(here.nodes) > 3 else here.add_worker(CPUS)

    running = background.submit(hasty.submit, *FEW, output=output, job=name)
    until(lambda: len(site.commits(output)) > 2, running)
    code, said = here.ray("job", "stop", name)
    assert code == 0, said
    stopped = running.result(WAIT)
    assert stopped.record["status"] == "STOPPED", stopped.said
    assert "error: interrupted; committed shards are kept" in stopped.said
    kept = site.commits(output)
    assert 2 < len(kept) < 15

    running = background.submit(hasty.submit, *FEW, output=output)
    until(lambda: len(site.commits(output)) > len(kept) + 2, running)
    here.kill_worker(victim)
    here.nodes.remove(victim)
    job = running.result(WAIT)
    assert (job.code, job.record["status"]) == (0, "SUCCEEDED"), job.said
    assert "Traceback" not in job.said
    assert f"resuming: {len(kept)} shard" in job.said
    assert victim.ip in placed(here, "actors", job)[ACTOR]
    assert set(kept) < set(site.commits(output))
    assert_same_rows(site.rows(output), first_rows(local[0], ROWS))
