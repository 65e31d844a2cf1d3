"""Runs one command many times, each in a fork of a process that has imported it once.

    python -m tests.forked vidgen.sample FOLDER < calls.json > results.json

The calls are a JSON list of argument lists. Each runs in a copy of the folder, as it was given. A
result holds `code`, `output` (stdout and stderr), `seconds` and `changed`: the paths in the folder
that were made, changed or removed.
"""

import importlib
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback

SECONDS = 60


def run(module, arguments: list[str]) -> dict:
    """One call in the current folder."""
    before, began = _tree(), time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = 1
            try:
                signal.alarm(SECONDS)
                code = _exit_code(module, arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        output = file.read()
    after = _tree()
    changed = sorted({str(path) for path, _ in before.items() ^ after.items()})
    seconds = time.monotonic() - began
    return {"code": code, "output": output, "changed": changed, "seconds": seconds}


def _exit_code(module, arguments: list[str]) -> int:
    """Runs a command as `python -m` does."""
    sys.argv = [module.__file__, *arguments]
    try:
        try:
            if hasattr(module, "define_flags"):
                from vidgen.process import command_line

                module.define_flags()
                command_line.run(module.main)
            else:
                module.main()
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            return 1
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _copy(source: str, folder: str) -> None:
    """Makes the folder a copy of another, and the current one."""
    shutil.rmtree(folder)
    shutil.copytree(source, folder)
    os.chdir(folder)


def _module(name: str):
    """What `python -m` runs of this name."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def _tree() -> dict[pathlib.Path, tuple]:
    facts = {path: path.lstat() for path in pathlib.Path(".").rglob("*")}
    return {path: (fact.st_size, fact.st_mtime_ns) for path, fact in facts.items()}


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    command = _module(sys.argv[1])
    results: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for arguments in json.load(sys.stdin):
            if not results or results[-1]["changed"]:
                _copy(sys.argv[2], folder)
            results.append(run(command, arguments))
    json.dump(results, sys.stdout)
