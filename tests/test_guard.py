"""What a guarded process can no longer do, tried in a process of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from numpy.random import _common  # a shared library that needs no other

CODE = """
import ctypes, json, os, signal, socket, subprocess, sys, threading
import av, numpy as np
from data_pipelines.workers import guard

folder, unprivileged = sys.argv[1], sys.argv[2] == "1"
if unprivileged and os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
inherited = open(folder + "/given.txt")
before = socket.socketpair()
found = {"holds": guard.enter(200 << 20, readable=[folder + "/allowed"], files=40)}

def attempt(name, call):
    try:
        call()
        found[name] = "done"
    except (Exception, MemoryError) as error:
        found[name] = type(error).__name__

def reads_whole_memory():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))

def playlist():
    # the mistake that the format check prevents, made on purpose: the list names a neighbour
    with av.open(folder + "/allowed/list.mp4", format="concat", options={"safe": "0"}) as container:
        next(container.decode(video=0))

attempt("socket", socket.socket)
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("pair", socket.socketpair)
attempt("program", lambda: subprocess.run(["/bin/true"]))
attempt("fork", os.fork)
attempt("secret", lambda: open(folder + "/secret.txt").read())
attempt("passwd", lambda: open("/etc/passwd").read())
attempt("list", lambda: os.listdir(folder))
attempt("write", lambda: open(folder + "/new", "w"))
attempt("write allowed", lambda: open(folder + "/allowed/new", "w"))
attempt("playlist", playlist)
attempt("environ of parent", lambda: open(f"/proc/{os.getppid()}/environ").read())
attempt("trace", lambda: ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) and 1 / 0)
def opens_many():
    handles = []
    try:
        while len(handles) < 50:
            handles.append(os.dup(0))
    finally:
        for handle in handles:
            os.close(handle)

attempt("many files", opens_many)
attempt("memory", reads_whole_memory)
found["peak_mib"] = [int(line.split()[1]) >> 10 for line in open("/proc/self/status")
                     if line.startswith("VmHWM")][0]
attempt("allowed", lambda: open(folder + "/allowed/a.txt").read())
attempt("given", inherited.read)
attempt("thread", lambda: (t := threading.Thread(target=lambda: None)).start() or t.join())
attempt("import", lambda: __import__("sqlite3"))
attempt("import with libraries", lambda: __import__("wheel_like"))
attempt("data", lambda: open(folder + "/target/data/a.txt").read())
attempt("numpy", lambda: np.linalg.svd(np.ones((40, 40))))
print(json.dumps(found))
"""
# What a wheel with shared libraries becomes under `pip install --target`; a real one links to them.
WHEEL_LIKE = """
import ctypes
ctypes.CDLL(__file__.removesuffix("/__init__.py") + ".libs/library.so")
"""


@pytest.fixture(scope="module", params=["as it is", "unprivileged"])
def found(request):
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are closed to other users
        yield attempts(request.param, pathlib.Path(folder))


def attempts(user, folder):
    folder.chmod(0o755)
    (folder / "allowed").mkdir()
    for name in ("given.txt", "secret.txt", "allowed/a.txt"):
        (folder / name).write_text("text")
    (folder / "allowed" / "list.mp4").write_text("ffconcat version 1.0\nfile ../secret.txt\n")
    for name in ("wheel_like", "wheel_like.libs", "data"):
        (folder / "target" / name).mkdir(parents=True)
    (folder / "target" / "wheel_like" / "__init__.py").write_text(WHEEL_LIKE)
    shutil.copyfile(_common.__file__, folder / "target" / "wheel_like.libs" / "library.so")
    (folder / "target" / "data" / "a.txt").write_text("text")
    command = [sys.executable, "-c", CODE, str(folder), str(int(user == "unprivileged"))]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = {**os.environ, "PYTHONPATH": f"{root}:{folder}/target", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"user": user}


def test_the_answer_says_what_holds(found):
    assert found["holds"]["memory"] == "rlimit"
    assert "seccomp" in found["holds"]["network"] and found["holds"]["programs"] == "seccomp"


def test_network_programs_and_other_processes_are_out_of_reach(found):
    for name in ("socket", "unix", "pair", "program", "fork", "trace"):
        assert found[name] in ("PermissionError", "ZeroDivisionError"), name


def test_only_what_was_given_or_allowed_can_be_read(found):
    if "files" not in found["holds"]:
        pytest.fail("this kernel has no Landlock: files are open to a decoder, see docs/safety.md")
    for name in ("secret", "passwd", "list", "write", "write allowed", "playlist", "data"):
        assert found[name] == "PermissionError", name
    assert found["environ of parent"] == "PermissionError"
    assert found["allowed"] == found["given"] == "done"


def test_memory_and_open_files_are_bounded(found):
    assert found["memory"] == "MemoryError" and found["peak_mib"] <= 200
    assert found["many files"] == "OSError"


def test_ordinary_work_goes_on(found):
    assert found["thread"] == found["numpy"] == found["import with libraries"] == "done"
    if found["user"] == "as it is":  # another user may not be able to read this installation
        assert found["import"] == "done"
