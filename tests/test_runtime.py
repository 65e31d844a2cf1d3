"""Processes stop when asked, end when stuck, and say why with their exit code."""

import signal
import time

import jax
import pytest

from tests.processes import spawn, spawn_two
from vidgen.process import runtime
from vidgen.training import workdir


def wait_for(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"ended without saying {word}: {process.communicate(timeout=30)[1]}")


LOOP = """
    import time
    from vidgen.process import runtime
    runtime.start(heartbeat_seconds=10)
    for step in range(1, 5000):
        if step == 3:
            print("training")
        time.sleep(0.01)
        if runtime.should_stop():
            print("stopped after", step)
            raise SystemExit(runtime.EXIT_PREEMPTED)
"""


@pytest.mark.parametrize("number", runtime.STOP_SIGNALS)
def test_a_signal_stops_after_the_step(number):
    process = spawn(LOOP)
    wait_for(process, "training")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == runtime.EXIT_PREEMPTED
    assert "stopped after" in out and signal.Signals(number).name in err


def test_a_second_signal_ends_at_once():
    process = spawn(
        """
        import time
        from vidgen.process import runtime
        runtime.take_signals()
        print("busy")
        while True:
            time.sleep(60)
        """
    )
    wait_for(process, "busy")
    process.send_signal(signal.SIGTERM)
    assert "stopping after this step" in process.stderr.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - start < 2


def test_a_signal_to_one_process_stops_all_after_the_same_step():
    processes = spawn_two(LOOP)
    for process in processes:
        wait_for(process, "training")
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [runtime.EXIT_PREEMPTED] * 2, outputs
    assert outputs[0][0] == outputs[1][0] != ""


def test_an_error_in_one_process_ends_the_others_soon():
    processes = spawn_two(
        """
        import jax, sys, time
        from vidgen.process import runtime
        from vidgen.training import workdir
        runtime.end_on_error()
        runtime.start(heartbeat_seconds=5)
        print("training")
        if jax.process_index() == 1:
            raise workdir.RefusedError("other data")
        time.sleep(100)
        """
    )
    start = time.monotonic()
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert processes[1].returncode == runtime.EXIT_CONFIG and "other data" in errors[1]
    assert processes[0].returncode != 0
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "statement, code, trace",
    [
        ("raise workdir.RefusedError('other config')", runtime.EXIT_CONFIG, False),
        ("raise ValueError('a bug')", runtime.EXIT_ERROR, True),
        ("raise SystemExit(7)", 7, False),
        ("threading.Thread(target=fail).start(); time.sleep(60)", runtime.EXIT_ERROR, True),
        ("pass", 0, False),
    ],
)
def test_an_error_ends_with_its_own_code(statement, code, trace):
    process = spawn(
        f"""
        import threading, time
        from vidgen.process import runtime
        from vidgen.training import workdir
        def fail():
            raise OSError("in a thread")
        runtime.end_on_error()
        {statement}
        """
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert ("Traceback" in err) == trace


@pytest.mark.parametrize(
    "stuck, code",
    [("time.sleep(60)", runtime.EXIT_HANG), ("ctypes.PyDLL(None).sleep(60)", runtime.EXIT_ERROR)],
    ids=["python", "native code that holds the lock"],
)
def test_the_watchdog_ends_a_stuck_process_and_keeps_its_stacks(tmp_path, stuck, code):
    process = spawn(
        f"""
        import ctypes, time
        from vidgen.process import runtime
        def stuck_here():
            {stuck}
        dog = runtime.Watchdog("{tmp_path}/new/stacks.txt")
        for _ in range(4):
            dog.expect("step", 0.4)  # each re-arms it: no alarm, though four steps take longer
            time.sleep(0.2)
        with dog.phase("save", 0.3):
            pass
        time.sleep(0.5)
        print("stuck")
        dog.expect("step", 0.3)
        stuck_here()
        """
    )
    wait_for(process, "stuck")
    start = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert time.monotonic() - start < 0.3 + runtime.NATIVE_GRACE_SECONDS + 2
    stacks = (tmp_path / "new" / "stacks.txt").read_text()
    assert "stuck_here" in stacks
    if code == runtime.EXIT_HANG:
        assert 'no progress in "step" for 0.3 s' in stacks and 'no progress in "step"' in err


def test_a_closed_watchdog_is_quiet(tmp_path):
    dog = runtime.Watchdog(tmp_path / "stacks.txt")
    dog.expect("step", 0.05)
    dog.close()
    time.sleep(0.1)
    assert (tmp_path / "stacks.txt").read_text() == ""


def test_half_a_description_of_the_processes_is_refused(monkeypatch):
    monkeypatch.setenv("VIDGEN_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"VIDGEN_COORDINATOR=host:port \(found None\)"):
        runtime.start()
    with pytest.raises(ValueError, match="from 0 to 1"):
        runtime.start(coordinator="127.0.0.1:1", index=2)
    monkeypatch.setenv("VIDGEN_PROCESSES", "two")
    with pytest.raises(ValueError, match="VIDGEN_PROCESSES=two"):
        runtime.start()


PROGRAM = """
import jax
from vidgen.process import runtime
runtime._CACHED_SECONDS = 0.0
runtime.start(heartbeat_seconds=10)
print(jax.jit(lambda x: x * 2 + 1)(3.0))
"""


def test_compiled_programs_are_kept_in_a_private_folder(tmp_path, monkeypatch):
    home = {"XDG_CACHE_HOME": str(tmp_path), "VIDGEN_COMPILE_CACHE": ""}
    out, err = spawn(PROGRAM, **home).communicate(timeout=300)
    assert "7.0" in out, err
    folder = tmp_path / "vidgen" / "programs"
    assert list(folder.iterdir()) and folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ValueError, match="can be written by other users"):
        runtime.compile_cache(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made .*or `off`"):
        runtime.compile_cache(tmp_path / "file" / "below")


def test_two_processes_share_a_cache_and_mind_no_entry_cut_short(tmp_path):
    cache = {"VIDGEN_COMPILE_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        for process in spawn_two(PROGRAM, **cache):
            out, err = process.communicate(timeout=300)
            assert "7.0" in out, err
        entries = [path for path in (tmp_path / "cache").iterdir() if path.stat().st_size]
        assert entries
        for path in entries:
            path.write_bytes(path.read_bytes()[:-9])


def test_the_devices_are_told_in_one_line():
    line = runtime.describe()
    assert line.startswith("8 x cpu (cpu); process 0 of 1; JAX ") and "\n" not in line
    assert jax.__version__ in line


def test_the_exit_codes_of_errors_are_those_of_the_runtime():
    from vidgen.process import command_line
    from vidgen.training import checkpoint

    assert workdir.RefusedError.exit_code == runtime.EXIT_CONFIG
    assert checkpoint.SaveError.exit_code == runtime.EXIT_STORAGE
    assert checkpoint.DamagedError.exit_code == runtime.EXIT_STORAGE
    assert command_line.EXIT_USAGE == runtime.EXIT_USAGE
