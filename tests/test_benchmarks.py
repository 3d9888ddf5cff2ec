"""The benchmarks run: their quick modes from end to end, and what they compute beside measuring."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokloss_ray.demo import DATA
from tokloss_ray.schema import INPUT_IDS, LOSS, PREDICTED_IDS, PROBLEM

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
common = pytest.importorskip("common")


def run(name: str, tmp_path: Path, *options: str) -> dict:
    """The figures of a benchmark in its quick mode."""
    target = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(target), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "┃" in done.stdout
    figures = json.loads(target.read_text())
    assert figures["benchmark"] == name
    assert figures["machine"]["cores"] > 0
    assert figures["machine"]["versions"]["ray"]
    return figures


@pytest.mark.parametrize("name", ["stages", "scale", "startup", "stand_in_gpu"])
def test_help_says_what_is_measured(name):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "python benchmarks/" in done.stdout
    assert len(done.stdout) > 500


def test_stages_together_take_the_sum_of_their_times(tmp_path):
    figures = run("stages", tmp_path, "--only", "stages")["stages"]
    wall = {stage: found["median"] for stage, found in figures["wall"].items()}
    together = wall.pop("together")
    assert together == pytest.approx(1 / sum(1 / rate for rate in wall.values()), rel=1e-3)
    assert figures["rows"] == 2_000


@pytest.mark.slow
def test_all_of_what_is_measured_on_a_gpu_runs_without_one(tmp_path):
    """`make bench-gpu` on a tiny model; packed and compiled as on a GPU, though nothing is made faster by it here."""
    figures = run("gpu", tmp_path, "--device", "cpu")
    assert len(figures["parity"]) == 8
    assert max(family["difference"] for family in figures["parity"].values()) < 1e-4
    assert sum(family["batching"] == "packed" for family in figures["parity"].values()) == 7  # not DeBERTa
    assert set(figures["precision"]) == {"bfloat16", "float16"}
    assert len(figures["throughput"]) == 4
    for name, measured in figures["throughput"].items():
        assert (measured["failed"], measured["compiled"], measured["batching"]) == ({}, "yes", "packed"), name
        assert len(measured["tokens_per_second"]) == 8
    assert figures["job"]["tokens_per_second"]["job"] > 0
    floors = json.loads((BENCHMARKS / "floors.json").read_text())["gpu.json"]
    assert {limit["figure"][1] for limit in floors} == set(figures["goals"])


@pytest.mark.slow
def test_the_quick_mode_of_stages_with_ray(tmp_path):
    (found,) = run("stages", tmp_path, "--only", "ray")["ray"]
    assert found["tokens"]["median"] == pytest.approx(1 << 14, rel=0.02)
    assert 0 < found["driver_cpu_ms"]["median"] < found["all_cpu_ms"]["median"] + 1


@pytest.mark.slow
def test_the_quick_mode_of_startup(tmp_path):
    found = run("startup", tmp_path)["pre-encoded"]
    assert found["rows"] == 1_000
    points = [found["points"][name]["median"] for name in ("actor ready", "first commit", "_SUCCESS", "exit")]
    assert points[0] > 0
    assert points == sorted(points)


@pytest.mark.slow
def test_the_quick_mode_of_scale(tmp_path):
    figures = run("scale", tmp_path, "--part", "actors", "--part", "memory")
    (point,) = figures["actors"]["points"]
    assert point["actors"] == 2
    assert point["of_linear"] <= 1.1  # a stand-in is never faster than it should be
    assert all(found["peak_memory_mb"] > 100 for found in figures["memory"]["points"])


@pytest.mark.slow
def test_the_quick_mode_of_several(tmp_path):
    figures = run("several", tmp_path)
    assert figures["rows"] == 400
    for what in ("commands", "processor"):
        one, two = (figures[what][way]["median"] for way in ("one pass", "two passes"))
        assert figures["ratios"][what] == pytest.approx(one / two, abs=1e-3)


@pytest.mark.slow
def test_the_quick_mode_of_nodes(tmp_path):
    """A job that joins three nodes by their address, with a GPU for each actor."""
    (point,) = run("nodes", tmp_path)["points"]
    assert point["gpus"] == 2
    assert point["of_linear"] <= 1.1
    assert all(seconds > 0 for seconds in point["cpu_s_per_million_tokens"].values())


@pytest.mark.slow
def test_figures_of_small_files_stay_beside_each_other(tmp_path):
    run("many_files", tmp_path, "--plan", "300")
    figures = run("many_files", tmp_path, "--plan-rows", "2000000")
    assert figures["plan of 300 files"]["units"] == 1
    assert figures["plan of 2 files"]["rows"] == 2_000_000


@pytest.mark.slow
def test_the_quick_mode_of_learning(tmp_path):
    found = run("learning", tmp_path)["demo, mixed 5 %"]
    assert 0 < found["table"]["100"] <= found["table"]["1000"] <= found["errors"]
    assert found["learnt"]["1000"] > 0.5 * found["errors"]


@pytest.mark.slow
def test_the_quick_mode_of_estimate(tmp_path):
    found = run("estimate", tmp_path)["sets"]["demo, mixed 5 %"]
    assert found["1000"]["coverage"] >= 0.9
    assert found["1000"]["seen"] <= found["1000"]["estimate"] <= found["1000"]["high"]


@pytest.mark.slow
def test_the_quick_mode_of_review(browser, tmp_path):
    found = run("review", tmp_path)
    assert 0 < found["next: median"] <= found["next: slowest"]


@pytest.mark.slow
def test_the_quick_mode_of_records(tmp_path):
    lines = run("records", tmp_path)["lines"]
    assert [line["measure"] for line in lines if line["segments"] == "after"] == ["status", "resume", "finish"] * 2
    assert all(line["peak_mb"] > 50 for line in lines)


def test_a_corpus_has_the_rows_asked_for_each_with_an_id_of_its_own(tmp_path):
    folder = common.write_corpus(tmp_path / "corpus", 120_003, DATA)
    table, base = pq.read_table(folder), pq.read_table(DATA)
    assert table.num_rows == 120_003
    assert len(set(table["id"].to_pylist())) == 120_003
    assert table["tokens"][110_002] == base["tokens"][2]
    assert table.schema.equals(base.schema)


def test_a_stand_in_answers_every_token():
    sequences = pa.table({INPUT_IDS: pa.array([[5, 6, 7], [], [8]], pa.list_(pa.int32()))})
    stand_in = common.StandIn(7)
    for _ in range(2):
        table, tokens = stand_in.answer(sequences)
        assert tokens == 4
        assert [len(losses) for losses in table[LOSS].to_pylist()] == [3, 0, 1]
        assert all(0 <= tag < 7 for tags in table[PREDICTED_IDS].to_pylist() for tag in tags)
        assert table[PROBLEM].null_count == 3


def test_the_peak_of_memory_counts_child_processes():
    code = "import numpy, sys; a = numpy.ones(20_000_000); print(flush=True); sys.stdin.read()"
    memory = common.Memory(every=0.05)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        before = len(memory.samples)
        while len(memory.samples) < before + 2:
            time.sleep(0.02)
        child.communicate()
    assert memory.stop() > 160e6
    assert sum(max(values) for values in memory.tenths().values()) > 160


def test_spread_keeps_the_runs():
    found = common.spread([3.0, 1.0, 2.04], 1)
    assert found == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": [3.0, 1.0, 2.0]}


@pytest.mark.slow
def test_a_stand_in_gpu_is_served(tmp_path):
    """All tokens, at no more than its rate, but for the ends of shards; a busy machine serves it less."""
    found = run("stand_in_gpu", tmp_path)
    assert found["shards"] > 6
    assert 0 < found["served"] < 1.2
    assert 0 <= found["device_wait"] < 1
