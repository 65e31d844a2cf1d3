"""A wrong invocation of any command ends at once, in one message that says what would be right.

Each file of `wrong_invocations/` has the wrong invocations of one command as a hurried user tries
them, a line each: the arguments, then the words that the message has to hold. They run in a folder
that `messy_folder` fills, and have to leave it as it is.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from tests import messy_folder, processes
from vidgen.process import exit_codes

FOLDER = pathlib.Path(__file__).parent / "wrong_invocations"
COMMANDS = sorted(path.stem for path in FOLDER.glob("*.txt"))
LINES = 12  # of a message, at most
ENV = {**os.environ, "PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
ENV |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def cases(command: str) -> list[tuple[str, list[str]]]:
    """(arguments, words of the message) of each line."""
    lines = (FOLDER / f"{command}.txt").read_text().splitlines()
    pairs = [line.split(" => ") for line in lines]
    return [(arguments.strip(), words.split(" | ")) for arguments, words in pairs]


def problems(arguments: str, words: list[str], result: dict) -> list[str]:
    """What is wrong with the end of a wrong invocation."""
    output, found = result["output"], []
    if result["code"] not in (exit_codes.USAGE, exit_codes.REFUSED):
        found.append(f"ends with {result['code']}")
    if "Traceback" in output:
        found.append("shows a traceback")
    if len(output.splitlines()) > LINES:
        found.append(f"says {len(output.splitlines())} lines")
    found += [f"does not say {word!r}" for word in words if word not in output]
    found += [f"wrote {path}" for path in result["changed"][:3]]
    return [f"{arguments!r} {what}: {output[-600:]}" for what in found]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy")
    messy_folder.make(folder)
    return folder


def test_every_command_has_25_of_them():
    tops = [*processes.ROOT.glob("vidgen/*.py"), *processes.ROOT.glob("data_pipelines/*.py")]
    tops += processes.ROOT.glob("data_pipelines/*/__main__.py")
    names = {str(path.relative_to(processes.ROOT).with_suffix("")) for path in tops}
    names = {name.replace("/", ".").removesuffix(".__main__") for name in names}
    assert set(COMMANDS) == {name for name in names if not name.endswith("__init__")}
    assert all(len(dict(cases(command))) >= 25 for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_invocations_end_in_one_message(command, folder):
    wanted = cases(command)
    configs = str(processes.ROOT / "configs")
    calls = [shlex.split(arguments.replace("{configs}", configs)) for arguments, _ in wanted]
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked", command, str(folder)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        env=ENV,
        cwd=processes.ROOT,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    pairs = zip(wanted, results, strict=True)
    found = [line for case, result in pairs for line in problems(*case, result)]
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_one_of_them_in_a_process_of_its_own(command, tmp_path):
    arguments, words = cases(command)[0]
    line = [sys.executable, "-m", command, *shlex.split(arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENV, cwd=tmp_path)
    result = {"code": done.returncode, "output": done.stdout + done.stderr}
    result["changed"] = [path.name for path in tmp_path.iterdir()]
    assert not problems(arguments, words, result)
