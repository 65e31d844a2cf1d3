"""A process that is stuck ends, says where, and keeps account of its seconds."""

import json
import pathlib
import signal
import time

import pytest

from tests import processes
from vidgen.process import exit_codes, guard, phases, stacks

LIMITS = {"start": 60.0, "data": 60.0, "step": 60.0, "compile": 60.0, "save": 60.0, "floor": 0.2}

STUCK = """
import os, signal, sys, time
from vidgen.process import endings, phases, ranks, runtime
endings.end_on_error()
runtime.start(heartbeat_seconds=60)
def stuck_here():
    {stuck}
limits = dict(start=60.0, data=60.0, step=60.0, compile=60.0, save=60.0, floor=0.2)
mine = phases.Phases(limits | dict(step=1.0))
mine.open("{folder}")
for step in range(4):
    mine.enter("data", step)
    mine.enter("step", step)
    time.sleep(0.4)  # four together take longer than the limit of one
print("stuck", flush=True)
mine.enter("step", 4)
if ranks.index() == ranks.count() - 1:
    stuck_here()
else:
    time.sleep(60)
"""
KINDS = {
    "python": "time.sleep(60)",
    "code that holds the lock": "sum(range(10**12))",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)",
}


def run(kind, count, folder):
    code = STUCK.format(stuck=KINDS[kind], folder=folder)
    places = processes.several(count) if count > 1 else [{}]
    started = [processes.spawn(code, **place) for place in places]
    for process in started:
        if not any(line == "stuck\n" for line in process.stdout):
            raise AssertionError(process.communicate()[1])
    begin = time.monotonic()
    texts = [process.communicate(timeout=60)[1] for process in started]
    return [process.returncode for process in started], texts, time.monotonic() - begin


@pytest.mark.parametrize("kind", KINDS)
def test_a_stuck_process_ends_and_keeps_its_stacks(kind, tmp_path):
    (code,), (err,), seconds = run(kind, 1, tmp_path)
    ends = {"python": [exit_codes.HANG], "stopped": [exit_codes.HANG, -signal.SIGKILL]}
    assert code in ends.get(kind, [-signal.SIGKILL]), err
    assert seconds < 1 + 5
    text = stacks.path(tmp_path, 0).read_text()
    assert "stuck_here" in text and "HANG" in err
    assert "stuck_here" in " ".join(stacks.main_thread(text))
    if kind == "python":
        assert 'no progress in "step" of step 4 for 1 s (limits.step)' in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_stuck_one_of_several_is_named_and_all_end(kind, tmp_path):
    codes, texts, seconds = run(kind, 3, tmp_path)
    assert seconds < 1 + 8
    assert codes[0] == codes[1] == exit_codes.HANG, texts
    assert "stuck_here" in stacks.path(tmp_path, 2).read_text()
    ((odd, frames), (rest, _)) = stacks.group(tmp_path, 0)
    assert odd == [2] and rest == [0, 1] and "stuck_here" in " ".join(frames)
    if kind == "python":
        assert any("process 2: " in text and "stuck_here" in text for text in texts)


def test_nothing_is_left_running(tmp_path):
    code = STUCK.format(stuck=KINDS["python"], folder=tmp_path)
    process = processes.spawn(code)
    assert process.stdout.readline() == "stuck\n"
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 10
    while pathlib.Path(f"/proc/{children[0]}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_limits_are_learnt_from_the_run_and_bounded(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(phases.Phases, "_watch", lambda self: None)
    mine = phases.Phases(LIMITS | {"floor": 3.0, "compile": 90.0})

    def step(seconds, label="a"):
        mine.enter("step", 1, [label])
        now[0] += seconds
        return mine._seconds

    assert step(50) == 90 and mine._phase == "compile"
    assert step(9) == 90 and mine._phase == "step"  # the others may be compiling still
    assert [step(0.1) for _ in range(20)] == [60] * 20  # as the config says, until it is known
    assert step(2.0) == 3.0  # five times 0.1 s is less than the floor
    assert step(0.1) == 10.0  # five times 2 s
    assert step(50, "b") == 90 and mine._phase == "compile"  # a program of its own
    assert step(9) == 90
    assert step(0.1) == 10.0  # which taught nothing
    assert step(30) == 10.0
    assert step(0.1) == 60  # never more than the config says


def test_a_phase_may_have_a_floor_of_its_own_and_its_end_says_where_a_limit_is_from(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(phases.Phases, "_watch", lambda self: None)
    mine = phases.Phases(LIMITS | {"floor": 3.0}, save=7.0)
    for _ in range(30):
        for phase in ("data", "save"):
            mine.enter(phase, 1)
            now[0] += 0.1
    mine.enter("save", 1)
    assert mine._seconds == 7 and "limits.floor" in mine._source
    mine.enter("data", 1)
    assert mine._seconds == 3 and "limits.floor" in mine._source
    mine.enter("step", 1)
    assert mine._seconds == 60 and mine._source == "limits.step"


def test_seconds_are_added_up_by_phase(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "LINE_SECONDS", 0.0)
    mine = phases.Phases(LIMITS)
    mine.open(tmp_path)
    mine.enter("data", 1)
    time.sleep(0.05)
    mine.enter("step", 1)
    time.sleep(0.1)
    mine.enter("save")
    time.sleep(0.05)
    mine.note(goes_on_from=0)
    mine.close()
    (path,) = (tmp_path / "ledger").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["process"] == 0 and abs(lines[0]["started"] - time.time()) < 3600
    spent = {}
    for line in lines:
        for name, seconds in line["spent"].items():
            spent[name] = spent.get(name, 0) + seconds
    assert sum(spent.values()) == pytest.approx(lines[-1]["at"], abs=0.005)
    assert 0.05 <= spent["data"] < spent["step"] and spent["save"] >= 0.05
    assert lines[-1]["end"] == 0


def test_two_processes_see_one_deadline(tmp_path):
    mine = guard.Beat(tmp_path / "beat", is_new=True)
    other = guard.Beat(tmp_path / "beat")
    assert other.read() == float("inf")
    mine.write(12.5)
    assert other.read() == 12.5
