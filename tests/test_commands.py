"""Every command explains itself, and what should be light imports little."""

import subprocess
import sys

import pytest

from tests import processes

COMMANDS = sorted(
    f"{path.parent.name}.{path.stem}"
    for package in ("vidgen", "data_pipelines")
    for path in (processes.ROOT / package).glob("*.py")
    if "def main(argv" in path.read_text()
)
HEAVY = ["grain", "tensorflow_datasets", "ml_collections", "av", "array_record", "transformers"]


def python(*arguments):
    line = [sys.executable, *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=processes.ROOT)


def test_the_commands_are_found():
    assert {"vidgen.train", "vidgen.encode", "vidgen.sample"} <= set(COMMANDS)
    assert {"data_pipelines.pipeline", "data_pipelines.shapes"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_how_to_call_it(command):
    done = python("-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {command} " in done.stdout or "bash launch/" in done.stdout
    assert "--" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    "modules, also",
    [
        ("vidgen.models.stdit vidgen.models.vae vidgen.models.text vidgen.models.critics", "orbax"),
        ("vidgen.diffusion.flow vidgen.training.optim vidgen.models.flops", "orbax"),
        ("vidgen.training.train_state vidgen.models.vae_loss", "orbax"),
        ("vidgen.diffusion.generate vidgen.tasks vidgen.weights.tree_files", "tensorboardX"),
    ],
)
def test_models_and_mathematics_import_without_the_data_path(modules, also):
    code = f"import sys; sys.modules.update(dict.fromkeys({[*HEAVY, also]}))\n"
    done = python("-c", code + f"import {', '.join(modules.split())}")
    assert done.returncode == 0, done.stderr
