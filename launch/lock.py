"""Writes requirements/py3XX.lock: every version and hash that vidgen and its tests need.

    python launch/lock.py [--upgrade]

Each lock is in pip's requirements format, for `pip install --require-hashes`. It lists the hashes
of all files of a version, so it serves every platform that has wheels, and it names no package
index: pip's own settings decide where the files come from. Without --upgrade, versions already in
a lock stay. Needs uv (`pip install uv`), which resolves for a Python version that is not at hand.
"""

import argparse
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("test", "beam", "data")  # what the tests cover
HEADER = (
    "# Made by launch/lock.py from setup.py for Python {python}; install with --require-hashes.\n"
)


def lock(python: str, upgrade: bool) -> pathlib.Path:
    """Resolves for one Python version and returns the path of the lock that it wrote."""
    path = ROOT / "requirements" / f"py{python.replace('.', '')}.lock"
    command = ["uv", "pip", "compile", "setup.py", "--python-version", python]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-build-options"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    command += ["--upgrade"] * upgrade + ["--output-file", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ)
    path.write_text(HEADER.format(python=python) + path.read_text())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="move every version to the newest")
    args = parser.parse_args()
    (ROOT / "requirements").mkdir(exist_ok=True)
    for python in PYTHONS:
        path = lock(python, args.upgrade)
        pins = [line for line in path.read_text().splitlines() if "==" in line]
        print(f"{path.relative_to(ROOT)}: {len(pins)} packages")


if __name__ == "__main__":
    main()
