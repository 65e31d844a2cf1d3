"""An environment of its own for `tests.compile_h100`: vidgen, and JAX's compiler for CUDA.

The compiler comes as the plugin of exactly one JAX, requirements/h100.lock: that of Python 3.12 and
3.13. It needs neither a GPU nor CUDA's libraries.
"""

import hashlib
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "h100.lock"
PYTHONS = ("3.12", "3.13")
_STAMP = "installed-h100"
_SETTINGS = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def is_inside(venv: pathlib.Path) -> bool:
    """Whether this process runs in the environment."""
    return pathlib.Path(sys.prefix).resolve() == venv.resolve()


def run_inside(venv: pathlib.Path, module: str, arguments: list[str]) -> None:
    """Goes on as `python -m module` of the environment, which is made where it is missing.

    Raises:
        RuntimeError: If it cannot be made.
    """
    make(venv)
    python = str(venv / "bin" / "python")
    sys.stdout.flush()
    os.execve(python, [python, "-m", module, *arguments], os.environ | _SETTINGS)


def make(venv: pathlib.Path) -> None:
    """Makes the environment, or brings it to the locked versions; does nothing where it has them.

    Raises:
        RuntimeError: If there is no fitting Python, or an installation fails.
    """
    want = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    stamp = venv / _STAMP
    install = ["bash", str(ROOT / "launch" / "install.sh")]
    settings = {"VENV": str(venv)}
    if not (venv / "bin" / "python").exists():
        settings["PYTHON"] = find_python()
    _run(install, os.environ | settings)
    if stamp.exists() and stamp.read_text() == want:
        return
    print(f"Installing {LOCK.name} into {venv}", flush=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(LOCK)]
    _run(pip, os.environ)
    stamp.write_text(want)


def find_python() -> str:
    """Path of an interpreter that the lock serves.

    Raises:
        RuntimeError: If none is found.
    """
    named = [f"python{version}" for version in PYTHONS]
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    kept = [str(path) for name in named for path in sorted(pyenv.glob(f"versions/*/bin/{name}"))]
    for candidate in [sys.executable, *named, *kept]:
        if _version_of(candidate) in PYTHONS:
            return candidate
    raise RuntimeError(
        f"no Python {' or '.join(PYTHONS)} found, for which the compiler is locked: install "
        "one, or make the environment yourself with PYTHON=... VENV=... bash launch/install.sh."
    )


def _version_of(python: str) -> str:
    """The "3.12" of an interpreter, or nothing if it does not run."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([python, "-c", program], capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _run(command: list[str], environment) -> None:
    code = subprocess.run(command, env=environment, cwd=ROOT).returncode
    if code:
        raise RuntimeError(f"{command[0]} ended with code {code}; its message stands above.")
