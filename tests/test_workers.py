import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time

import pytest

from data_pipelines.workers import children

JOBS = """
import ctypes, os, signal, subprocess, time

class Strange(Exception):
    pass

class Evil:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["CANARY"],)

def make(offset):
    kept = []
    def run(task, *files):
        if task == "crash":
            ctypes.string_at(1)
        if task == "hang":
            time.sleep(1000)
        if task == "print":
            print("noise on stdout", flush=True)
            os.write(1, b"more noise")
        if task == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if task == "hog":
            kept.append(bytearray(os.urandom(1 << 20) * 300))
            time.sleep(1000)
        if task == "leak":
            kept.append(bytearray(os.urandom(1 << 20) * 30))
        if task == "family":
            kept.append(subprocess.Popen(["sleep", "1000"]))
            print(kept[-1].pid, file=open(offset, "w"), flush=True)
            time.sleep(1000)
        if task == "evil":
            return Evil()
        if task == "strange error":
            raise Strange("unknown to the parent")
        if task == "files":
            return [file.read() for file in files], offset
        if task == "jax":
            import jax
        if task == "error":
            raise ValueError("named")
        if task == "big":
            return bytes(5_000_000)
        return offset, task, os.getpid()
    return run
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "worker_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "worker_jobs:make"


def is_gone(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_children_answer_from_many_threads(jobs):
    with children.Pool(2, jobs, (7,)) as pool, concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(pool, range(20)))
        assert [r[:2] for r in results] == [(7, i) for i in range(20)]
        assert os.getpid() not in {r[2] for r in results}
        assert pool("print")[1] == "print"
        assert len(pool("big")) == 5_000_000
        pids = pool.pids()
    assert pids and all(is_gone(pid) for pid in pids)


def test_jax_is_closed_and_exceptions_come_home(jobs):
    with children.Pool(1, jobs, (0,)) as pool:
        with pytest.raises(ImportError):
            pool("jax")
        with pytest.raises(ValueError, match="named"):
            pool("error")
        assert pool(1)[1] == 1


def test_dead_and_stuck_children_are_replaced(jobs):
    with children.Pool(1, jobs, (0,), deadline_seconds=2.0) as pool:
        first = pool(0)[2]
        with pytest.raises(children.WorkerDied, match="ended with code") as error:
            pool("crash")
        assert error.value.reason == "crash"
        start = time.monotonic()
        with pytest.raises(children.WorkerDied, match="no answer within 2 s") as error:
            pool("hang")
        assert error.value.reason == "hang" and time.monotonic() - start < 8
        last = pool(0)[2]
        assert last != first and is_gone(first)


def test_stopped_children_and_all_that_they_started_are_killed(jobs, tmp_path):
    note = tmp_path / "pid"
    with children.Pool(1, jobs, (str(note),), deadline_seconds=2.0) as pool:
        for task in ("stop", "family"):
            with pytest.raises(children.WorkerDied) as error:
                pool(task)
            assert error.value.reason == "hang"
        grandchild = int(note.read_text())
        deadline = time.monotonic() + 5
        while not is_gone(grandchild) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert is_gone(grandchild)
        assert pool(3)[1] == 3


def test_a_child_that_takes_too_much_memory_is_killed(jobs):
    with children.Pool(1, jobs, (0,), deadline_seconds=60, memory_bytes=200 << 20) as pool:
        with pytest.raises(children.WorkerDied, match="more than 200 MiB") as error:
            pool("hog")
        assert error.value.reason == "memory"
        assert pool(0)[1] == 0


def test_leaking_and_old_children_are_replaced_without_an_error(jobs):
    with children.Pool(1, jobs, (0,), memory_bytes=200 << 20) as pool:
        pids = [pool("leak")[2] for _ in range(12)]
        assert 1 < len(set(pids)) < 12 and all(is_gone(pid) for pid in set(pids) - set(pool.pids()))
    with children.Pool(1, jobs, (0,), max_calls=3) as pool:
        pids = [pool(i)[2] for i in range(7)]
        assert len(set(pids[:3])) == len(set(pids[3:6])) == 1 and len(set(pids)) == 3


def test_open_files_reach_the_child(jobs, tmp_path):
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    with (
        children.Pool(1, jobs, (0,)) as pool,
        open(tmp_path / "a", "rb") as a,
        open(tmp_path / "b", "rb") as b,
    ):
        for _ in range(100):  # more than a child may have open at once, were they kept
            a.seek(0), b.seek(1)
            assert pool("files", [a, b]) == ([b"first", b"econd"], 0)


def test_answers_cannot_run_code_in_the_parent(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    with children.Pool(1, jobs, (0,)) as pool:
        with pytest.raises(children.WorkerDied, match="no place in an answer"):
            pool("evil")
        assert not (tmp_path / "canary").exists()
        with pytest.raises(RuntimeError, match="Strange: unknown to the parent"):
            pool("strange error")


def test_a_wrong_start_is_an_error(jobs):
    with children.Pool(1, "worker_jobs:none", ()) as pool, pytest.raises(AttributeError):
        pool(0)


@pytest.mark.parametrize("task", ["0", "'hang'"])
def test_children_end_when_their_parent_is_killed(jobs, tmp_path, task):
    code = (
        "import sys, threading, time; from data_pipelines.workers import children\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"pool = children.Pool(1, {jobs!r}, (0,)); pool(0)\n"
        f"threading.Thread(target=pool, args=({task},), daemon=True).start()\n"
        "time.sleep(0.3); print(pool.pids()[0], flush=True); time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert not is_gone(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_gone(child)


@pytest.mark.parametrize("ending", ["", "del numbers", "pool.close()"])
def test_a_pool_ends_with_its_program_or_its_last_user_in_silence(jobs, tmp_path, ending):
    code = (
        "import sys; from data_pipelines.workers import children\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"pool = children.Pool(1, {jobs!r}, (0,))\n"
        "def numbers():\n"
        "    with pool:\n"
        "        while True: yield pool(1)\n"
        "numbers = numbers(); next(numbers)\n"
        "print(pool.pids()[0], flush=True)\n" + ending
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert is_gone(int(done.stdout))
