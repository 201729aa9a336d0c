"""`./scripts/bench` where nothing can be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.suite.plans import Case, Contender
from benchmarks.suite.turns import Processes

ROOT = Path(__file__).parents[2]
CASE: Case = {"network": "cifar10-lenet5", "batch_size": 32, "pictures": 512, "processors": 1}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the script is bash's")

# Makes environments; that of the peers has no packages.
VENV = f"""\
#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  case "$3" in *peers)
    printf '#!/bin/sh\\n[ "$2" != pip ] || exit 1\\nexec {sys.executable} -S "$@"\\n' >"$3/bin/python" ;;
  esac
  exit
fi
"""
WITHOUT_NETWORK = VENV + 'if [ "$2" = pip ]; then echo "no network" >&2; exit 1; fi\n'


def checkout(folder: Path, python: str) -> Path:
    """What the script needs, and the Python that it finds first."""
    (folder / "scripts").mkdir()
    for name in ("bench", "setup.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    for name in ("src", "benchmarks", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "programs").mkdir()
    for name in ("python", "python3"):
        (folder / "programs" / name).write_text(python, encoding="utf-8")
        (folder / "programs" / name).chmod(0o755)
    return folder


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(folder / "scripts" / "bench"), *words]
    return subprocess.run(command, env={**kept, "PATH": path}, capture_output=True, text=True, check=False)


def test_a_pip_that_fails_leaves_out_peers_and_no_more(tmp_path: Path) -> None:
    folder = checkout(tmp_path, f'{WITHOUT_NETWORK}[ "$1" = -c ] || exec {sys.executable} "$@"\n')
    ended = bench(folder, "training", "--minutes", "0", "--out", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    assert "going on with what .venv/bin/python has" in ended.stderr
    assert "The peers could not all be installed" in ended.stderr
    assert "the time is over; go on by --continue" in ended.stderr, "the suite has begun"
    assert (tmp_path / "out" / "performance.md").is_file()
    assert not (folder / ".venv-peers" / ".peers-installed").exists(), "it is tried again the next time"
    measure = Processes("train", folder / ".venv-peers" / "bin" / "python", tmp_path, epochs=2)
    assert measure(Contender("PyTorch", "pytorch"), {"loop": "tuned"}, CASE) == {"missing": "torch is not installed"}


@pytest.mark.parametrize("words", [("--peers-python", "python3"), ("--peers-python=python3",), ("--help",)])
def test_a_python_given_for_the_peers_needs_no_installation(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = checkout(tmp_path, f'{VENV}[ "$2" != benchmarks.suite ] || echo "began: $*"\n')
    ended = bench(folder, "training", *words)
    assert ended.stdout == f"began: -m benchmarks.suite training {' '.join(words)}\n"
    assert not (folder / ".venv-peers").exists()
    bench(folder, "training")
    assert (folder / ".venv-peers").exists()


def test_without_any_usable_python_it_says_so(tmp_path: Path) -> None:
    folder = checkout(tmp_path, f'{WITHOUT_NETWORK}exec {sys.executable} -S "$@"\n')
    ended = bench(folder, "training")
    assert ended.returncode == 2
    assert "no Python here has what it needs" in ended.stderr
