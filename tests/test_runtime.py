"""Processes stop when asked, end when stuck, and say why with their exit code."""

import signal
import time

import jax
import pytest

from tests.processes import spawn, spawn_two
from vidgen.process import exit_codes, runtime


def wait_for(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"ended without saying {word}: {process.communicate(timeout=30)[1]}")


LOOP = """
    import time
    from vidgen.process import exit_codes, runtime
    runtime.start(heartbeat_seconds=10)
    for step in range(1, 5000):
        if step == 3:
            print("training")
        time.sleep(0.01)
        if runtime.should_stop():
            print("stopped after", step)
            raise SystemExit(exit_codes.REQUEUE)
"""


@pytest.mark.parametrize("number", runtime.STOP_SIGNALS)
def test_a_signal_stops_after_the_step(number):
    process = spawn(LOOP)
    wait_for(process, "training")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == exit_codes.REQUEUE
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
    assert [process.returncode for process in processes] == [exit_codes.REQUEUE] * 2, outputs
    assert outputs[0][0] == outputs[1][0] != ""


@pytest.mark.parametrize("which", ["file", "time"])
def test_a_file_or_a_time_limit_stops_all_after_the_same_step(which, tmp_path):
    seconds = 0.5 if which == "time" else 0
    code = LOOP.replace(
        "    for step", f"    runtime.stop_when('{tmp_path}', {seconds})\n    for step"
    )
    processes = spawn_two(code)
    for process in processes:
        wait_for(process, "training")
    if which == "file":
        (tmp_path / "STOP").touch()
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [exit_codes.REQUEUE] * 2, outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert any(("STOP is there" if which == "file" else "0.5 s are over") in x for _, x in outputs)


def test_an_error_in_one_process_ends_the_others_soon():
    processes = spawn_two(
        """
        import jax, sys, time
        from vidgen.process import endings, runtime
        from vidgen.training import workdir
        endings.end_on_error()
        runtime.start(heartbeat_seconds=5)
        print("training")
        if jax.process_index() == 1:
            raise workdir.RefusedError("other data")
        time.sleep(100)
        """
    )
    start = time.monotonic()
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [exit_codes.REFUSED] * 2
    assert "other data" in errors[1] and "process 1 on " in errors[0] and "other data" in errors[0]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "statement, code, trace",
    [
        ("raise workdir.RefusedError('other config')", exit_codes.REFUSED, False),
        ("raise ValueError('a bug')", exit_codes.ERROR, True),
        ("raise SystemExit(7)", 7, False),
        ("threading.Thread(target=fail).start(); time.sleep(60)", exit_codes.ERROR, True),
        ("pass", 0, False),
    ],
)
def test_an_error_ends_with_its_own_code(statement, code, trace):
    process = spawn(
        f"""
        import threading, time
        from vidgen.process import endings
        from vidgen.training import workdir
        def fail():
            raise OSError("in a thread")
        endings.end_on_error()
        {statement}
        """
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert ("Traceback" in err) == trace


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


def test_the_exit_codes_of_all_commands_are_those_of_the_table():
    from data_pipelines import pipeline
    from data_pipelines.loading import reads
    from data_pipelines.process import arguments
    from vidgen.process import command_line

    assert reads.BadDataError.exit_code == exit_codes.DATA
    assert command_line.EXIT_USAGE == arguments.EXIT_USAGE == exit_codes.USAGE
    assert pipeline.EXIT_GO_ON == exit_codes.REQUEUE
    assert set(exit_codes.MEANINGS) >= {0, 1, 2, 75, 76, 77, 78, 79, 80}
