"""Interrupt at random moments, fill the disk, take the storage away: one sentence, the right exit code, nothing else.

    python -m tests.long.interruptions --runs 100 --signal both --full-disk 20 --storage-gone 20 --seed 1

Real `tokloss score` processes over a small corpus with a tiny model. The moments are spread evenly over the length of
an undisturbed run, from the start of the process to its end. Several of these can run side by side.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import s3fs

from tests.support import models
from tests.support.s3_proxy import proxied
from tests.support.s3_servers import S3Server, moto_server
from tokloss_ray.demo import DATA
from tokloss_ray.output.verify import verify

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "TOKLOSS_TEST_INTERRUPTION"  # all processes of a run inherit it
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
ROWS, SHARD_TOKENS = 1500, 1000
ENTRY = "tokloss_ray"
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM}
END_TIMEOUT, LINGER = 60, 5.0
"""Seconds for a run to end after what was done to it, and for Ray's processes to be gone after that."""
FINISHED_EACH = 5
"""One in so many interrupted runs is finished by the same command, and verified."""

HINT = "(use --verbose for the traceback)"
STAGES = "starting|checking input and model|connecting to the cluster|checking the nodes|scoring|retrying lost shards"
PROGRESS = re.compile(
    rf"^(warning: .*|resuming: .*|scoring shard .* again: .*|"
    rf"({STAGES}|starting Ray|starting the model|computing totals)( \.\.\.|: .*))$"
)
FRAMEWORKS = re.compile(r"Traceback|\bray\b|\braylet\b|_StatsActor|internal_kv|NoneType|Exception ignored|Fatal Python|"
                        r"^\s+File \"|^\w+Error:|\btorch\b|pyarrow|botocore|aiohttp")  # fmt: skip


@dataclass
class Case:
    """What the runs of one harness share."""

    folder: Path
    entry: str = ENTRY
    length: float = 0.0
    """Seconds of an undisturbed run."""

    def command(self, output: str, *options: str) -> list[str]:
        command = [sys.executable, "-m", self.entry, "score", "--model", str(self.folder / "model")]
        command += ["--input", str(self.folder / "in.parquet"), "--output", output, "--id-column", "id"]
        return [*command, "--shard-tokens", str(SHARD_TOKENS), "--batch-tokens", "256", *options]


@dataclass
class Ended:
    """A run that has ended: what it said, and what is wrong with that."""

    code: int
    text: str
    left: list[str]
    """Processes of the run that were alive some seconds later."""
    took: float = 0.0
    """Seconds from what was done to it to its end."""
    gone: float = 0.0
    """Seconds from then until its last process had ended."""
    phase: str = ""
    problems: list[str] = field(default_factory=list)


class Run:
    """One process of the program, in a session and with an environment of its own."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.mark = secrets.token_hex(8)
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), MARK: self.mark, **(env or {})}
        env.pop("RAY_ADDRESS", None)
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the run)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, start_new_session=True
        )

    def sleep_until(self, moment: float) -> bool:
        """Whether it still runs so many seconds after its start."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, self.began + moment - time.monotonic()))
        return self.process.poll() is None

    def end(self, timeout: float = END_TIMEOUT) -> Ended:
        """Wait for its end; what hangs is ended, and is a problem."""
        start, problems = time.monotonic(), []
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            problems.append(f"it had not ended after {timeout:g} s")
            self.process.kill()
            self.process.wait()
        took = time.monotonic() - start
        gone = time.monotonic()
        while (left := self.processes()) and time.monotonic() < gone + LINGER:
            time.sleep(0.05)
        gone = time.monotonic() - gone
        self.said.seek(0)
        ended = Ended(self.process.returncode, self.said.read(), list(left.values()), took, gone, problems=problems)
        self.said.close()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return ended

    def processes(self) -> dict[int, str]:
        """Those of the run that are alive: in its session, or with its mark."""
        alive = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with suppress(OSError):
                    fields = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
                    mine = int(fields[3]) == self.process.pid or self.mark.encode() in _bytes(entry, "environ")
                    if mine and fields[0] not in "ZX":
                        alive[int(entry)] = _bytes(entry, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:120]
        return alive

    def catches(self, number: int) -> bool:
        """Whether it has a handler for a signal, or ignores it: from when on its own code is in charge."""
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigCgt", "SigIgn"))]
            return any(mask >> (number - 1) & 1 for mask in masks)
        return False

    def phase(self, output: Path | None = None) -> str:
        """What it is doing, as far as can be seen from outside."""
        if not self.catches(signal.SIGTERM):
            return "interpreter"
        if output is not None and (output / "_SUCCESS").exists():
            return "after _SUCCESS"
        if output is not None and any((output / "_commits").glob("*.json")):
            return "scoring"
        names = " ".join(self.processes().values())
        if "ray::MapWorker" in names or "ray::_MapWorker" in names:
            return "model"
        return "Ray" if "gcs_server" in names else "preflight"


def _bytes(pid: str, name: str) -> bytes:
    return Path("/proc", pid, name).read_bytes()


def odd_lines(text: str, sentence: bool) -> list[str]:
    """What a run said beside its progress and, if it is to end with one, exactly one error sentence."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    odd = [line for line in lines if not PROGRESS.match(line) and line not in errors and line != HINT]
    odd += [line for line in lines if FRAMEWORKS.search(line.replace("starting Ray", "")) and line not in odd]
    if sentence and len(errors) != 1:
        odd.append(f"({len(errors)} error sentences)")
    return odd


def judge(ended: Ended, codes: tuple[int, ...]) -> Ended:
    """Note what is wrong with an end that should have been in one of these codes, or 0 if it was done by then."""
    if ended.code not in (0, *codes):
        ended.problems.append(f"exit code {ended.code}, not {' or '.join(map(str, codes))}")
    if ended.code == 0:
        found = FRAMEWORKS.findall(ended.text.replace("starting Ray", ""))
        ended.problems += [f"said {word}" for word in found] + ["an error sentence"] * ("error: " in ended.text)
    else:
        ended.problems += [f"said: {line}" for line in odd_lines(ended.text, sentence=True)]
    ended.problems += [f"left behind: {name}" for name in ended.left]
    return ended


def interrupt(case: Case, output: Path, moment: float, number: int, group: bool, again: float | None) -> Ended:
    """A run that gets a signal at a moment: alone or with its whole group (as from a terminal), and perhaps another."""
    run = Run(case.command(str(output)))
    if not run.sleep_until(moment):
        ended = run.end()
        ended.phase = "ended before"
        return judge(ended, ())
    phase = run.phase(output)
    _send(run, number, group)
    if again is not None:
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(again)
        _send(run, number, group)
    ended = run.end()
    ended.phase = phase
    if phase == "interpreter" and ended.code in (-number, 1, 128 + number):
        ended.problems += [f"left behind: {name}" for name in ended.left]
        return ended  # no code of ours was there yet
    judge(ended, (128 + number,))
    if ended.code == 0 and phase != "after _SUCCESS":
        ended.problems.append("exit code 0 in spite of the signal")
    return ended


def _send(run: Run, number: int, group: bool) -> None:
    with suppress(ProcessLookupError):
        if group:
            os.killpg(run.process.pid, number)
        elif run.process.poll() is None:
            run.process.send_signal(number)


def finish(case: Case, output: str, *options: str, env: dict[str, str] | None = None) -> list[str]:
    """What is wrong after the same command again, undisturbed."""
    ended = Run(case.command(output, *options), env).end(180)
    judge(ended, ())
    if ended.code == 0:
        found = verify(output)
        ended.problems += found.problems
        if found.totals.rows != ROWS:
            ended.problems.append(f"{found.totals.rows} rows of {ROWS}")
    if ended.problems:
        ended.problems.append(ended.text)
    return [f"when run again: {problem}" for problem in ended.problems]


def interruptions(case: Case, runs: int, names: list[str], rng: random.Random, done: Callable[..., None]) -> None:
    """Runs with each of the signals, at moments spread over the length of an undisturbed run."""
    for name in names:
        for i in rng.sample(range(runs), runs):
            moment = (i + rng.random()) / runs * case.length
            group = rng.random() < (0.5 if name == "INT" else 0.2)
            again = rng.uniform(0, 1.5) if rng.random() < 0.3 else None
            output = case.folder / f"out-{name}-{i}"
            ended = interrupt(case, output, moment, SIGNALS[name], group, again)
            if rng.randrange(FINISHED_EACH) == 0 or i == 0:
                ended.problems += finish(case, str(output))
            what = f"SIG{name} at {moment:.2f} s{', to its group' * group}"
            done(name, what + (f", again after {again:.2f} s" if again is not None else ""), ended)
            shutil.rmtree(output, ignore_errors=True)


def full_disk(case: Case, runs: int, rng: random.Random, done: Callable[..., None]) -> None:
    """Runs whose output is on a file system that is too small, by more or less; then it grows."""
    finish(case, str(case.folder / "whole"))
    size = sum(path.stat().st_size + 4096 for path in (case.folder / "whole").rglob("*"))
    for i in range(runs):
        room = int((i + rng.random()) / runs * size * 0.95)
        with small_disk(case.folder / f"disk-{i}", room) as (folder, grow):
            run = Run(case.command(str(folder / "out")))
            ended = run.end(120)
            judge(ended, (1, 2))
            if ended.code == 2 and (folder / "out" / "_commits").exists():
                ended.problems.append("exit code 2 after work")
            ended.phase = "before work" if ended.code == 2 else "work"
            grow()
            ended.problems += finish(case, str(folder / "out"))
            done("full disk", f"{room:,} bytes of {size:,}", ended)


@contextmanager
def small_disk(folder: Path, room: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system with so many bytes of room, and what makes more.

    Raises:
        PermissionError: this user, or this container, cannot mount.
    """
    folder.mkdir()
    pages = max(2, room // 4096)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode())
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def storage_gone(case: Case, runs: int, rng: random.Random, done: Callable[..., None]) -> None:
    """Runs whose object storage goes away at a moment: killed for good, or out of reach for a while."""
    for i in range(runs):
        moment = (i + rng.random()) / runs * case.length
        with ExitStack() as stack:
            server = stack.enter_context(moto_server())
            _client(server).mkdir("gone")
            way = stack.enter_context(ExitStack())
            proxy = way.enter_context(proxied(server.endpoint))
            env = {**server.env, "AWS_ENDPOINT_URL": proxy.endpoint}
            options = ("--storage-tries", "2")
            run = Run(case.command("s3://gone/out", *options), env)
            ran = run.sleep_until(moment)
            phase = run.phase() if ran else "ended before"
            proxy.harm = lambda _: ("reset",)
            for_good = i % 2 == 0
            if for_good:
                way.close()  # nobody listens there any more
            ended = run.end(150)
            ended.phase = phase
            judge(ended, (1, 2))
            if ended.code and not for_good:
                ended.problems += finish_there(case, server, options)
            done("storage gone", f"{'for good' if for_good else 'for a while'} at {moment:.2f} s", ended)


def finish_there(case: Case, server: S3Server, options: tuple[str, ...]) -> list[str]:
    """As `finish`, on the server."""
    before = dict(os.environ)
    os.environ.update(server.env)
    s3fs.S3FileSystem.clear_instance_cache()  # of the server before
    try:
        return finish(case, "s3://gone/out", *options, env=server.env)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _client(server: S3Server) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=server.key, secret=server.secret, endpoint_url=server.endpoint, use_listings_cache=False
    )


def make_case(folder: Path, entry: str = ENTRY) -> Case:
    """Corpus and model, and how long an undisturbed run takes."""
    table = pq.read_table(DATA)
    pq.write_table(table.slice(0, ROWS), folder / "in.parquet", row_group_size=500)
    models.build("bert", folder / "model", table["tokens"].slice(0, 300).to_pylist(), TAGS)
    case = Case(folder, entry)
    for number in range(2):  # the first one warms up caches of the system
        start = time.monotonic()
        Run(case.command(str(folder / f"undisturbed-{number}"))).end(180)
        case.length = time.monotonic() - start
    return case


class Notes:
    """Counts what was done, and keeps the output of runs with problems."""

    def __init__(self, keep: Path | None) -> None:
        self.keep = keep
        self.phases: dict[str, Counter[str]] = {}
        self.codes: dict[str, Counter[int]] = {}
        self.slowest = self.gone = 0.0
        self.failed: list[str] = []

    def __call__(self, kind: str, what: str, ended: Ended) -> None:
        self.phases.setdefault(kind, Counter())[ended.phase] += 1
        self.codes.setdefault(kind, Counter())[ended.code] += 1
        self.slowest, self.gone = max(self.slowest, ended.took), max(self.gone, ended.gone)
        line = f"{kind}: {what} ({ended.phase}): exit {ended.code} after {ended.took:.1f} s"
        print(line + "".join(f"\n    {problem}" for problem in ended.problems[:6]), flush=True)
        if ended.problems:
            self.failed.append(line)
            if self.keep is not None:
                self.keep.mkdir(parents=True, exist_ok=True)
                said = "\n".join([line, *ended.problems, "", ended.text])
                (self.keep / f"{len(self.failed):03d}.txt").write_text(said)

    def summary(self) -> str:
        parts = []
        for kind, phases in self.phases.items():
            moments = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
            codes = ", ".join(f"{count} with {code}" for code, count in sorted(self.codes[kind].items()))
            parts.append(f"{kind}: {phases.total()} runs ({moments}), ended {codes}")
        where = f" (kept in {self.keep})" if self.failed and self.keep else ""
        slowest = f"slowest end {self.slowest:.1f} s, last process gone {self.gone:.1f} s later"
        return f"{'; '.join(parts)}; {slowest}; {len(self.failed)} failures{where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=0, help="interrupted runs for each signal")
    parser.add_argument("--signal", choices=[*SIGNALS, "both"], default="both")
    parser.add_argument("--full-disk", type=int, default=0, help="runs on a disk that is too small; needs root")
    parser.add_argument("--storage-gone", type=int, default=0, help="runs whose S3 server goes away")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--entry", default=ENTRY, help="module that is run")
    parser.add_argument("--keep", type=Path, help="folder for the output of runs with problems")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children would ignore it too
    rng, start = random.Random(args.seed), time.monotonic()
    notes = Notes(args.keep or Path(tempfile.gettempdir(), f"interruptions-{os.getpid()}"))
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        case = make_case(Path(folder), args.entry)
        print(f"an undisturbed run takes {case.length:.1f} s", flush=True)
        interruptions(case, args.runs, list(SIGNALS) if args.signal == "both" else [args.signal], rng, notes)
        full_disk(case, args.full_disk, rng, notes) if args.full_disk else None
        storage_gone(case, args.storage_gone, rng, notes)
    print(f"{notes.summary()}; seed {args.seed}, {time.monotonic() - start:.0f} s")
    sys.exit(bool(notes.failed))


if __name__ == "__main__":
    main()
