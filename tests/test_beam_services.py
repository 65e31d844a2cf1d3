"""The way to Flink and Spark, without either: Beam's own job service and pool of workers.

They speak the protocols of a submission (job, staging, pickled functions, start of workers); what
is not here is the engine.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import tqdm

from configs import data
from data_pipelines import shapes
from data_pipelines.shards import builder
from data_pipelines.stages import ingest, parts, runner

ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(module: str, *flags: str, **env: str) -> tuple[subprocess.Popen, int]:
    """Starts a service, and waits until it listens."""
    port = free_port()
    flags = [flag.format(port=port) for flag in flags]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | env,
        start_new_session=True,
    )
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        assert process.poll() is None
        time.sleep(0.1)
    raise TimeoutError(module)


@pytest.fixture(scope="module")
def job_service(tmp_path_factory):
    staging = tmp_path_factory.mktemp("staging")
    module = "apache_beam.runners.portability.local_job_service_main"
    process, port = start(module, "-p", "{port}", "--staging_dir", str(staging))
    yield port
    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def worker_pool():
    """Starts a pool; its workers are `python` of the PATH that it is given."""
    pools = []

    def make(path: str = str(pathlib.Path(sys.executable).parent)) -> tuple[subprocess.Popen, int]:
        places = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        module = "apache_beam.runners.worker.worker_pool_main"
        pools.append(start(module, "--service_port={port}", **places))
        return pools[-1]

    yield make
    for process, _ in pools:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("source"), clips=20, images=4, seed=0)


def config():
    made = data.base()
    made.shards.bytes = 30_000
    made.scores = ("phash",)
    return made


def engine(name: str, job_port: int, pool_port: int, *more: str) -> runner.Engine:
    flags = f"--job_endpoint=127.0.0.1:{job_port}", "--environment_type=EXTERNAL"
    return runner.Engine(name, 1, (*flags, f"--environment_config=127.0.0.1:{pool_port}", *more))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def local(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out"
    assert len(ingest.run(source, out, config(), num_workers=1)["shards"]) > 2
    return contents(out)


@pytest.mark.parametrize("name", ["flink", "spark"])
def test_a_submission_gives_the_bytes_of_a_local_run(
    name, source, local, job_service, worker_pool, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "CLIPS_A_PART", 6)
    how = engine(name, job_service, worker_pool()[1])
    ingest.run(source, tmp_path / "out", config(), engine=how)
    assert contents(tmp_path / "out") == local


def test_who_answers_is_not_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "SILENCE_SECONDS", 1)
    done = []
    for answers in (True, False):  # the answer in the run before does not count
        with runner._told_of_silence(str(tmp_path), "flink"):
            if answers:
                runner._answer(lambda work, number: done.append(number), str(tmp_path), 3)
            time.sleep(1.5)
        assert ("no worker has answered" in capsys.readouterr().err) != answers
    assert done == [3]


def test_the_bar_counts_what_was_known_and_what_comes(tmp_path):
    with tqdm.tqdm(total=10, initial=4, disable=False) as bar:
        with runner.watch(tmp_path, 6, bar):
            pass
        assert bar.n == 10


def workers_of(pool: subprocess.Popen) -> list[int]:
    """Processes that a pool has started."""
    found = subprocess.run(["pgrep", "-P", str(pool.pid)], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def command(source, out, how: runner.Engine, *more: str) -> subprocess.Popen:
    """The pipeline as a command, in a process group of its own; `more` are lines before it."""
    flags = [f"--source={source}", f"--out={out}", f"--runner={how.runner}", "--num_workers=1"]
    flags += ["--config.shards.bytes=30000", "--config.scores=phash"]
    flags += ["--beam_args=" + " ".join(how.beam_args)]
    code = [*more, "from data_pipelines import pipeline", f"pipeline.main({flags})"]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def test_a_worker_that_dies_costs_what_it_had_in_hand(
    source, local, job_service, worker_pool, tmp_path
):
    """An engine would try again; this service waits for ever, and the same command goes on."""
    small = "from data_pipelines.stages import parts; parts.CLIPS_A_PART = 2"
    (pool, port), out = worker_pool(), tmp_path / "out"
    process = command(source, out, engine("flink", job_service, port), small)
    done = lambda: list(builder.work_folder(out).glob("parts/*/*.parquet"))
    while not (done() and workers_of(pool)):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(pool)[0], signal.SIGKILL)
    assert len(done()) < 12
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = command(source, out, engine("flink", job_service, worker_pool()[1]))
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert contents(out) == local


def test_silence_is_told(source, job_service, worker_pool, tmp_path):
    """The pool is there, and its workers are of a Python that has nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    _, port = worker_pool(str(tmp_path / "bin"))
    soon = "from data_pipelines.stages import runner; runner.SILENCE_SECONDS = 3"
    process = command(source, tmp_path / "out", engine("flink", job_service, port), soon)
    try:
        said = ""
        while "no worker has answered" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert "--runner=flink: no worker has answered within 3 seconds" in said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
