"""The supervisor: starts again what can be, from the last checkpoint, and nothing else."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import processes
from tests import toy_training as toy
from vidgen import launch
from vidgen.launching import leader
from vidgen.process import exit_codes

# A run of 5 "checkpoints" that each start may add one or more to, in a module of its own.
FAKE = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path([x for x in sys.argv if x.startswith("--workdir=")][0][10:])
process = int(os.environ["VIDGEN_PROCESS"])
count = int(os.environ["VIDGEN_PROCESSES"])
folder = workdir / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
start = len(list((workdir / "launch").glob("*-0.log")))
print("address", os.environ["VIDGEN_COORDINATOR"], "start", start, "process", process, flush=True)
{body}
"""


def launched(tmp_path, body, *flags, processes_=1):
    (tmp_path / "fake.py").write_text(FAKE.format(body=body))
    return subprocess.Popen(
        [sys.executable, "-m", "vidgen.launch", f"--processes={processes_}", *flags]
        + ["--", "fake", f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{processes.ROOT}:{tmp_path}"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(tmp_path, body, *flags, processes_=1):
    process = launched(tmp_path, body, *flags, processes_=processes_)
    err = process.communicate(timeout=60)[1]
    return process.returncode, err, toy.lines(tmp_path / "run" / "launch" / "starts.jsonl")


def test_it_starts_again_while_checkpoints_come_and_ends_when_all_is_done(tmp_path):
    body = """
if start < 4:
    (folder / str(start)).mkdir()
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    code, err, starts = finish(tmp_path, body)
    assert code == 0
    assert [s["code"] for s in starts] == [-signal.SIGSEGV] * 3 + [0]
    assert [s["newest_checkpoint"] for s in starts] == [1, 2, 3, 3]
    assert "process 0 on" in err and "SIGSEGV" in err and "start 3 process 0" in err


def test_it_gives_up_when_nothing_is_gained(tmp_path, monkeypatch):
    code, err, starts = finish(tmp_path, "sys.exit(76)", "--give_up_after=2")
    assert code == exit_codes.HANG and len(starts) == 2
    assert "2 starts in a row have saved nothing new (newest checkpoint: none): giving up" in err


@pytest.mark.parametrize("code", [exit_codes.USAGE, exit_codes.NUMBERS, exit_codes.REFUSED, 75])
def test_what_cannot_be_helped_is_not_started_again(code, tmp_path):
    found, _, starts = finish(tmp_path, f"sys.exit({code})")
    assert found == code and len(starts) == 1


def test_the_process_that_failed_first_is_named_and_the_others_are_ended(tmp_path, monkeypatch):
    body = """
if process == 2:
    print("the disk is full", flush=True)
    sys.exit(78)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1 if process else 600)
sys.exit(1 if process else 0)
"""
    begin = time.monotonic()
    code, err, (start,) = finish(tmp_path, body, "--give_up_after=1", processes_=3)
    assert code == exit_codes.STORAGE and start["process"] == 2
    assert "process 2 on" in err and "the disk is full" in err
    assert time.monotonic() - begin < leader.GRACE_SECONDS + 8


def test_each_start_has_an_address_of_its_own(tmp_path):
    finish(tmp_path, "(folder / str(start)).mkdir()\nif start < 3:\n    sys.exit(1)")
    logs = [path.read_text().split()[1] for path in (tmp_path / "run/launch").glob("*-0.log")]
    assert len(set(logs)) == 3


def test_a_signal_is_passed_on_to_all_and_nothing_is_started_again(tmp_path):
    body = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(folder / "ready").touch()
time.sleep(600)
"""
    process = launched(tmp_path, body, processes_=2)
    while not (tmp_path / "run/checkpoints/ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == exit_codes.REQUEUE
    assert len(toy.lines(tmp_path / "run/launch/starts.jsonl")) == 1


def test_no_process_outlives_the_supervisor(tmp_path):
    body = "(folder / str(os.getpid())).touch()\ntime.sleep(600)"
    process = launched(tmp_path, body, processes_=2)
    folder = tmp_path / "run/checkpoints"
    while not folder.is_dir() or len(list(folder.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{path.name}").exists() for path in folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--processes=2"], "give it after `--`"),
        (["--", "vidgen.train"], "has no --workdir"),
        (["--processes=0", "--", "vidgen.train", "--workdir=x"], "takes whole numbers, 1 or more"),
    ],
)
def test_a_wrong_command_line_says_what_is_missing(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        launch.parse(argv)
    assert error.value.code == exit_codes.USAGE and message in capsys.readouterr().err


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys, vidgen.launch; print(list({'jax', 'numpy', 'absl'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=processes.ROOT)
    assert json.loads(found.stdout) == []


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_run_survives_a_kill_to_the_bit(count, tmp_path):
    """One process is killed while a checkpoint is written; the others are gone with it."""
    latents, vae = toy.random_latents(tmp_path / "latents"), toy.vae(tmp_path)

    def supervised(name):
        command = ["tests.hooked", *toy.text_to_video(latents, tmp_path / name, vae)]
        return toy.start_module("vidgen.launch", [f"--processes={count}", "--", *command])

    whole = supervised("whole")
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    process = supervised("killed")
    while not toy.is_saving(tmp_path / "killed"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    mine = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(mine.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"process {count - 1} on" in err and "SIGKILL" in err
    toy.assert_same_run(tmp_path / "whole", tmp_path / "killed")
