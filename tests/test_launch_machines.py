"""Supervisors of several machines: they meet, tell each other of deaths, and replace machines."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests import launched
from tests import toy_training as toy
from vidgen.process import exit_codes

# The first start goes on for ever, the next one saves something and is done.
ONCE = """
if start == 1:
    time.sleep(600)
(checkpoints / str(start)).mkdir(exist_ok=True)
"""
FOR_EVER = "time.sleep(600)"
STOPS = """
signal.signal(signal.SIGTERM, lambda *_: (workdir / "stop").touch())
(seen / f"ready-{process}").touch()
while not (workdir / "stop").exists():
    time.sleep(0.02)
sys.exit(75)
"""


@pytest.fixture
def launching(tmp_path):
    made = []

    def make(*args, **kwargs):
        made.append(launched.Launched(tmp_path, *args, **kwargs))
        return made[-1]

    yield make
    for run in made:
        run.close()


def kill(pid, number=signal.SIGKILL):
    os.kill(int(pid), number)


def test_machines_meet_and_number_their_processes(launching):
    run = launching("", 2, processes_=2)
    run.start("a", "b")
    assert run.codes() == {"a": 0, "b": 0}
    seen = run.seen(1, 4)
    assert [row[:3] for row in seen] == [[str(i), "4", "aabb"[i]] for i in range(4)]
    assert len({row[3] for row in seen}) == 1 and seen[0][3].startswith("127.0.0.1:")
    (start,) = run.starts()
    assert start["code"] == 0 and start["machines"] == ["a", "b"]


@pytest.mark.parametrize("which", [0, 3])
def test_the_death_of_a_process_ends_all_and_all_start_again(which, launching):
    run = launching(ONCE, 2, processes_=2)
    run.start("a", "b")
    before = run.seen(1, 4)
    kill(before[which][4])
    after = run.seen(2, 4)
    assert not {row[4] for row in before} & {str(pid) for pid in run.left()}
    assert run.codes() == {"a": 0, "b": 0}
    assert [row[2] for row in after] == list("aabb") and after[0][3] != before[0][3]
    first, second = run.starts()
    assert (first["process"], first["host"], first["code"]) == (which, "aabb"[which], -9)
    assert first["seconds"] < 60 and second["code"] == 0
    (line,) = toy.lines(run.workdir / "launch" / "hosts.jsonl")
    assert (line["host"], line["start"], line["code"]) == ("aabb"[which], 1, -9)


def test_the_log_and_the_stack_of_the_first_failure_are_told_by_the_leader(launching):
    run = launching(
        """
if process == 1:
    (workdir / "stacks").mkdir()
    (workdir / "stacks/1.txt").write_text('Thread 0x01:\\n  File "/x/loader.py", line 7 in read\\n')
    print("no progress in data", flush=True)
    sys.exit(76)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1)
sys.exit(1)
""",
        2,
        "--give_up_after=1",
    )
    run.start("a", "b")
    assert run.codes() == {"a": exit_codes.HANG, "b": exit_codes.HANG}
    (start,) = run.starts()
    assert (start["process"], start["host"], start["code"]) == (1, "b", 76)
    assert start["stack"] == "loader.py:7 read" and start["last_lines"] == "no progress in data"
    assert start["ends"] == [[1, "b", 76], [0, "a", 1]]
    assert "no progress in data" in run.said("a") and "loader.py:7 read" in run.said("a")
    assert "giving up" in run.said("b")


def test_a_spare_takes_the_place_of_a_machine_that_is_lost(launching):
    run = launching(ONCE, 2)
    run.start("a", "b", "c")
    pid = run.seen(1, 2)[1][4]
    run.supervisors["b"].kill()
    assert [row[2] for row in run.seen(2, 2)] == ["a", "c"]
    assert run.codes() == {"a": 0, "b": -9, "c": 0}
    assert int(pid) not in run.left()
    first, _ = run.starts()
    assert first["host"] == "b" and "closed" in first["lost"]
    assert "b (process 1 and on) was lost" in run.said("a")


def test_a_folder_that_a_lost_machine_still_holds_is_tried_again(launching):
    run = launching(ONCE + "if start == 2:\n    sys.exit(80)", 2)
    run.start("a", "b", "c")
    run.seen(1, 2)
    run.supervisors["b"].kill()
    assert run.codes() == {"a": 0, "b": -9, "c": 0}
    assert [start["code"] for start in run.starts()] == [1, 80, 0]


def test_a_machine_that_comes_back_gets_its_place(launching):
    run = launching(ONCE, 2)
    run.start("a", "b")
    run.seen(1, 2)
    run.supervisors["b"].kill()
    run.supervisors["b"].wait()
    run.start("b")
    assert [row[2] for row in run.seen(2, 2)] == ["a", "b"]
    assert run.codes() == {"a": 0, "b": 0}


def test_without_a_spare_it_says_who_is_missing_and_ends(launching):
    run = launching(ONCE, 2, "--wait_seconds=2")
    run.start("a", "b")
    run.seen(1, 2)
    run.supervisors["b"].kill()
    assert run.codes() == {"a": exit_codes.ERROR, "b": -9}
    assert "1 of 2 machines are there (a). Missing: b." in run.said("a")
    assert "--wait_seconds" in run.said("a") and len(run.starts()) == 1


def test_members_end_when_the_leader_does_not_come_back(launching):
    run = launching(FOR_EVER, 2, "--wait_seconds=2")
    run.start("a", "b")
    run.seen(1, 2)
    run.supervisors["a"].kill()
    assert run.codes() == {"a": -9, "b": exit_codes.ERROR}
    run.wait(lambda: not run.left())
    assert f"127.0.0.1:{run.port}, which leads, cannot be reached" in run.said("b")
    assert "no process is left here. Start the same command" in run.said("b")


def test_members_go_on_with_a_leader_that_comes_back(launching):
    run = launching(ONCE, 2)
    run.start("a", "b")
    run.seen(1, 2)
    run.supervisors["a"].kill()
    run.supervisors["a"].wait()
    run.start("a", is_awaited=False)
    assert [row[2] for row in run.seen(2, 2)] == ["a", "b"]
    assert run.codes() == {"a": 0, "b": 0}


def test_a_host_that_fails_first_in_a_row_is_set_aside_for_a_spare(launching):
    run = launching('if host == "b":\n    time.sleep(0.2)\n    os.kill(os.getpid(), 9)', 2)
    run.start("a", "b")
    run.wait(lambda: len(run.starts()) == 1)
    run.start("c")
    assert run.codes() == {"a": 0, "b": 0, "c": 0}
    assert [start["machines"] for start in run.starts()] == [["a", "b"]] * 2 + [["a", "c"]]
    assert "b has failed often (launch/hosts.jsonl): set aside for a spare." in run.said("a")


def test_a_bad_host_is_used_where_no_spare_is_there(launching):
    run = launching('if host == "b" and start < 3:\n    os.kill(os.getpid(), 9)', 2)
    run.start("a", "b")
    assert run.codes() == {"a": 0, "b": 0}
    assert [start["code"] for start in run.starts()] == [-9, -9, 0]
    assert "b has failed often (launch/hosts.jsonl), and no spare is there: used." in run.said("a")


STRAYS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x00\xff\xfe" * 50 + b"\n",
    b"[" * 100_000 + b"\n",
    b"1" * 100_000 + b"\n",
    b"x" * 1_000_000,
    b'{"kind": "finish", "code": 0, "text": ""}\n',
    b'{"kind": "ended", "code": 1, "process": 0, "last_lines": "", "stack": ""}\n',
    b'{"kind": "hello"}\n',
    b'{"kind": ["hello"]}\n',
    b'{"kind": "hello", "nonce": "", "proof": "0", "host": "z", "name": "z", "pid": 1,'
    b' "processes": 1, "command": []}\n',
    "{'kind': 'hello', 'nonce': '\ud800'}".encode("utf-8", "surrogatepass") + b"\n",
    b'{"kind": "hello", "nonce": "\\ud800", "proof": "\\ud800", "host": "z", "name": "z",'
    b' "pid": 1, "processes": 1, "command": []}\n',
    b"",
]


def test_stray_connections_are_closed_and_change_nothing(launching):
    run = launching("while not (workdir / 'go').exists():\n    time.sleep(0.05)", 2)
    run.start("a", "b")
    run.seen(1, 2)
    kept = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(80)]
    for connection in kept:
        connection.close()
    for stray in STRAYS:
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as connection:
            try:
                connection.sendall(stray)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    continue
            except OSError:
                continue  # it was closed before all was sent
    (run.workdir / "go").touch()
    assert run.codes() == {"a": 0, "b": 0}
    said = run.said("a")
    assert "no JSON" in said and "a line of more than" in said and "began with finish" in said
    assert "does not know the token of this run" in said and "Traceback" not in said
    assert len(run.starts()) == 1


def test_another_token_is_not_let_in(launching):
    run = launching("time.sleep(3)", 1, "--wait_seconds=1")
    run.start("a")
    run.seen(1, 1)
    run.start("b", VIDGEN_LAUNCH_TOKEN="another one of many letters")
    assert run.codes() == {"a": 0, "b": exit_codes.ERROR}
    assert "it has another token" in run.said("b") and "VIDGEN_LAUNCH_TOKEN" in run.said("b")
    assert "does not know the token" in run.said("a")


def test_another_command_is_refused(launching):
    run = launching("time.sleep(3)", 1)
    run.start("a")
    run.seen(1, 1)
    run.start("b", more=["--seed=7"])
    assert run.codes() == {"a": 0, "b": exit_codes.REFUSED}
    assert "b was started with" in run.said("b") and "--seed=7" in run.said("b")


def test_a_second_leader_of_a_working_folder_is_refused(launching):
    run = launching(FOR_EVER, 1)
    run.start("a")
    run.seen(1, 1)
    run.start("b", port=launched.free_port())
    run.wait(lambda: run.supervisors["b"].poll() is not None)
    assert run.supervisors["b"].returncode == exit_codes.REFUSED
    assert f"is in use by launch {run.supervisors['a'].pid} on" in run.said("b")
    assert run.supervisors["a"].poll() is None


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_signal_at_any_supervisor_stops_the_run_on_all(host, launching):
    run = launching(STOPS, 2)
    run.start("a", "b", "c")
    run.wait(lambda: len(list((run.workdir / "seen").glob("ready-*"))) == 2)
    run.supervisors[host].send_signal(signal.SIGTERM)
    assert run.codes() == dict.fromkeys("abc", exit_codes.REQUEUE)
    assert len(run.starts()) == 1


def test_a_leader_whose_own_machine_is_set_aside_passes_a_signal_on(launching):
    run = launching('if host == "a":\n    os.kill(os.getpid(), 9)' + STOPS, 1)
    (run.workdir / "launch").mkdir(parents=True)
    line = {"host": "a", "start": 0, "gained": False}
    (run.workdir / "launch" / "hosts.jsonl").write_text(json.dumps(line) + "\n")
    run.start("a", "b")
    run.wait((run.workdir / "seen" / "ready-0").exists)
    assert run.seen(2, 1)[0][2] == "b"
    run.supervisors["a"].send_signal(signal.SIGTERM)
    assert run.codes() == {"a": exit_codes.REQUEUE, "b": exit_codes.REQUEUE}


def test_a_second_signal_ends_all_at_once(launching):
    run = launching("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOR_EVER, 2)
    run.start("a", "b")
    run.seen(1, 2)
    time.sleep(0.5)
    for _ in range(2):
        run.supervisors["b"].send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert run.codes() == dict.fromkeys("ab", exit_codes.REQUEUE)


def test_a_signal_while_machines_are_missing_ends_the_wait(launching):
    run = launching("", 3)
    run.start("a", "b")
    run.supervisors["b"].send_signal(signal.SIGTERM)
    assert run.codes() == dict.fromkeys("ab", exit_codes.REQUEUE)


def test_a_spare_may_be_stopped_alone(launching):
    run = launching("while not (workdir / 'go').exists():\n    time.sleep(0.05)", 1)
    run.start("a")
    run.seen(1, 1)
    run.start("b")
    run.supervisors["b"].send_signal(signal.SIGTERM)
    run.wait(lambda: run.supervisors["b"].poll() is not None)
    (run.workdir / "go").touch()
    assert run.codes() == {"a": 0, "b": exit_codes.REQUEUE}


def test_a_supervisor_that_was_stopped_for_long_goes_on(launching):
    run = launching("while not (workdir / 'go').exists():\n    time.sleep(0.05)", 1)
    run.start("a")
    run.seen(1, 1)
    run.supervisors["a"].send_signal(signal.SIGSTOP)
    time.sleep(14)
    run.supervisors["a"].send_signal(signal.SIGCONT)
    (run.workdir / "go").touch()
    assert run.codes() == {"a": 0} and len(run.starts()) == 1


def test_a_machine_without_a_word_is_lost(launching):
    run = launching(ONCE, 2)
    run.start("a", "b", "c")
    run.seen(1, 2)
    run.supervisors["b"].send_signal(signal.SIGSTOP)
    assert [row[2] for row in run.seen(2, 2)] == ["a", "c"]
    assert "no word from it for 12 s" in run.said("a")
    run.supervisors["b"].send_signal(signal.SIGCONT)
    run.wait(lambda: run.supervisors["a"].poll() is not None)
    run.supervisors["b"].send_signal(signal.SIGTERM)
    assert run.codes() == {"a": 0, "b": exit_codes.REQUEUE, "c": 0}


@pytest.mark.slow
def test_a_training_run_on_two_machines_survives_a_kill_to_the_bit(tmp_path):
    latents, vae = toy.random_latents(tmp_path / "latents"), toy.vae(tmp_path)

    def supervised(name):
        flags = ["--machines=2", f"--meet=127.0.0.1:{launched.free_port()}", "--"]
        flags += ["tests.hooked", *toy.text_to_video(latents, tmp_path / name, vae)]
        found = []
        for host in "ab":
            with open(tmp_path / f"{name}-{host}.txt", "w") as err:
                found.append(toy.start_module("vidgen.launch", flags, err, VIDGEN_LAUNCH_HOST=host))
            while not (tmp_path / name / "launch/lock").exists():
                time.sleep(0.05)
        return found

    def codes(supervisors):
        return [supervisor.wait(timeout=300) for supervisor in supervisors]

    assert codes(supervised("whole")) == [0, 0]
    run = supervised("killed")
    while not toy.is_saving(tmp_path / "killed"):
        assert run[0].poll() is None, (tmp_path / "killed-a.txt").read_text()
        time.sleep(0.002)
    mine = subprocess.run(["pgrep", "-P", str(run[1].pid)], capture_output=True, text=True)
    kill(mine.stdout.split()[-1])
    assert codes(run) == [0, 0]
    said = (tmp_path / "killed-a.txt").read_text()
    assert "process 1 on b ended first, by SIGKILL" in said
    toy.assert_same_run(tmp_path / "whole", tmp_path / "killed")
