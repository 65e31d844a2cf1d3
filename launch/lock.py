"""Writes requirements/py3XX.lock: every version and hash that vidgen and its tests need.

And requirements/h100.lock: JAX's compiler for CUDA, of the JAX of Python 3.12 and 3.13, which
`tests.compile_h100` installs on top.

    python launch/lock.py [--upgrade]

Each lock is in pip's requirements format, for `pip install --require-hashes`. It lists the hashes
of all files of a version, so it serves every platform that has wheels, and it names no package
index: pip's own settings decide where the files come from. Without --upgrade, versions already in
a lock stay. Needs uv (`pip install uv`), which resolves for a Python version that is not at hand.
"""

import argparse
import functools
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("test", "beam", "data")  # what the tests cover
COMPILER = ("jax-cuda13-pjrt", "jax-cuda13-plugin")
COMPILER_PYTHON = "3.12"  # and 3.13: both locks hold one JAX, which is newer than that of 3.11
HEADER = (
    "# Made by launch/lock.py from setup.py for Python {python}; install with --require-hashes.\n"
)
COMPILER_HEADER = (
    "# Made by launch/lock.py; install with --no-deps, beside py312.lock or py313.lock.\n"
)


def lock(python: str, upgrade: bool) -> pathlib.Path:
    """Resolves for one Python version and returns the path of the lock that it wrote."""
    command = ["setup.py", *(f"--extra={extra}" for extra in EXTRAS)]
    command += ["--upgrade"] * upgrade
    return _compile(command, python, lock_path(python), HEADER.format(python=python))


def lock_compiler() -> pathlib.Path:
    """Returns the path of the lock that it wrote of the compiler for CUDA, of the locked JAX."""
    pins = lock_path(COMPILER_PYTHON).read_text().splitlines()
    version = next(line.split()[0] for line in pins if line.startswith("jax=="))
    wanted = "".join(version.replace("jax", name, 1) + "\n" for name in COMPILER)
    path = ROOT / "requirements" / "h100.lock"
    return _compile(["--no-deps", "-"], COMPILER_PYTHON, path, COMPILER_HEADER, wanted)


def lock_path(python: str) -> pathlib.Path:
    """Where the lock of a Python version is."""
    return ROOT / "requirements" / f"py{python.replace('.', '')}.lock"


def _compile(what: list[str], python: str, path: pathlib.Path, header: str, given: str = ""):
    command = ["uv", "pip", "compile", *what, "--python-version", python]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-build-options"]
    command += ["--output-file", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ, input=given, text=True)
    path.write_text(header + path.read_text())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="move every version to the newest")
    args = parser.parse_args()
    (ROOT / "requirements").mkdir(exist_ok=True)
    steps = [functools.partial(lock, python, args.upgrade) for python in PYTHONS]
    for step in [*steps, lock_compiler]:
        path = step()
        pins = [line for line in path.read_text().splitlines() if "==" in line]
        print(f"{path.relative_to(ROOT)}: {len(pins)} packages")


if __name__ == "__main__":
    main()
