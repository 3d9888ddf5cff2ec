"""Build the source distribution and the wheel, and try the wheel where there is no checkout: make release.

The source distribution is made from the checkout and the wheel from the source distribution, so a file that the first
lacks is missing in the second. The wheel must hold the files of the package that git knows, no more and no less. It is
installed without its dependencies in a new environment, which finds them in the environment that this program runs in;
pip then checks them against the ranges that the wheel declares. Last, `tokloss demo` runs there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"


def main() -> None:
    """Build, compare, install and run; leave the two files in dist/.

    Raises:
        SystemExit: something is not as a release must be.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    require(f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md has no section [{version}]")
    for old in DIST.glob("*"):
        old.unlink()
    command(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    compare(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="tokloss-release-") as folder:
        try_wheel(wheel, Path(folder), version)
    print(f"\nready: {wheel.relative_to(ROOT)}, {sdist.relative_to(ROOT)}")


def compare(wheel: Path, sdist: Path) -> None:
    """Hold the files of both to those that git knows."""
    known = set(command("git", "-C", ROOT, "ls-files", "tokloss_ray", quiet=True).split())
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    require(packed == known, f"the wheel differs from the checkout in {sorted(packed ^ known)}")
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted(known - source)
    require(not missing, f"the source distribution lacks {missing}")


def try_wheel(wheel: Path, folder: Path, version: str) -> None:
    """Install the wheel in a new environment in `folder`, and run its program there."""
    home = folder / "environment"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    # A path file makes this environment's packages importable without processing its own path files, so the editable
    # install of the checkout stays unseen.
    packages = sysconfig.get_path("purelib", vars={"base": str(home)})
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    # The editable install of the checkout would otherwise count as the package.
    command(*pip, "install", "-q", "--no-deps", "--ignore-installed", wheel)
    command(*pip, "check")
    place = command(python, "-c", "import tokloss_ray; print(tokloss_ray.__file__)", cwd=folder, quiet=True)
    require(Path(place.strip()).is_relative_to(packages), f"the package comes from {place.strip()}")
    program = home / "bin" / "tokloss"
    printed = command(program, "--version", cwd=folder, quiet=True)
    require(version in printed, f"tokloss --version prints {printed.strip()!r}, not {version}")
    command(program, "demo", cwd=folder)


def command(*words: object, cwd: Path = ROOT, quiet: bool = False) -> str:
    """Run a command without the checkout on the import path; its output where `quiet`, else "" and it goes on.

    Raises:
        SystemExit: it failed.
    """
    line = [str(word) for word in words]
    print("$", " ".join(line), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE if quiet else None)
    require(done.returncode == 0, f"exit code {done.returncode}")
    return done.stdout or ""


def require(holds: bool, otherwise: str) -> None:
    """End with a sentence unless something holds."""
    if not holds:
        raise SystemExit(f"no release: {otherwise}")


if __name__ == "__main__":
    main()
