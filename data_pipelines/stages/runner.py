"""Engines: the same work on numbered parts, by threads of this process or by Apache Beam.

A part's result is a file, and a part that is there is not made again, so an engine may run a part
twice, in any order, on any machine that sees the work folder.
"""

import concurrent.futures
import contextlib
import dataclasses
import difflib
import functools
import json
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import fsspec

from data_pipelines.stages import exchange, parts

RUNNERS = {
    # what DirectRunner runs once it could not download another, which knows no --direct_* flags
    "direct": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}
SILENCE_SECONDS = 60  # until it is said that no worker answers
_ANSWERED = "answered"  # in a work folder or job: the file of the first worker
_OWN_FLAGS = ("flink", "spark")  # their job servers know flags that Beam's Python does not


@dataclasses.dataclass(frozen=True)
class Engine:
    """Who does the work.

    Attributes:
        runner: "local" or a key of RUNNERS.
        num_workers: Child processes of this machine, or of each Beam worker; 0: as many as it has
            processors, or one.
        beam_args: Flags for Beam.
        exchange: URL through which parts go where the machines share no disk; empty: they do.
    """

    runner: str = "local"
    num_workers: int = 0
    beam_args: tuple[str, ...] = ()
    exchange: str = ""

    @property
    def workers(self) -> int:
        return self.num_workers or (os.cpu_count() or 1 if self.runner == "local" else 1)


def run_local(
    examiner: parts.Examiner,
    numbers: Sequence[int],
    num_workers: int,
    tell: Callable[[int, int], None] = lambda clips, left_out: None,
):
    """Examines parts in threads, clip by clip, so that a slow clip holds nothing else up.

    Args:
        examiner: With `num_workers` child processes.
        numbers: Of the parts.
        num_workers: Threads.
        tell: Called with the number of clips that were done, and of rows among them left out.
    """
    open_parts = threading.Semaphore(4 + num_workers // 4)  # a hang leaves the others going
    lock = threading.Lock()

    def examine(number: int, place: int, clip, found: dict, size: int):
        rows = examiner.clip_rows(clip)
        with lock:
            found[place] = rows
            tell(1, sum(row.get("status") == "left out" for row in rows))
            last = len(found) == size
        if last:
            examiner.write_part(number, [row for i in range(size) for row in found[i]])
            open_parts.release()

    threads = concurrent.futures.ThreadPoolExecutor(num_workers)
    try:
        running: set[concurrent.futures.Future] = set()
        for number in numbers:
            while not open_parts.acquire(timeout=0.2):
                running = _raise_errors(running)
            part, found = parts.read_part(examiner.table, number), {}
            running |= {
                threads.submit(examine, number, place, clip, found, len(part))
                for place, clip in enumerate(part)
            }
        while running:
            running = _raise_errors(running)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _raise_errors(running: set) -> set:
    """Waits a moment for futures; raises what one of them raised, returns the others."""
    done, running = concurrent.futures.wait(
        running, 0.2, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    for future in done:
        future.result()
    return set(running)


def run_job(
    function: Callable[[str, int], object],
    work: pathlib.Path,
    engine: Engine,
    todo: Callable[[], Sequence[int]],
    folders: dict[str, pathlib.Path],
):
    """Gives the numbers that `todo` returns to Beam; results come to `folders`, if not by disk."""
    if not engine.exchange:
        run_beam(function, str(work), todo(), engine.runner, engine.beam_args)
        return
    url = exchange.place(engine.exchange, (work / "key").read_text())
    exchange.take(url, folders)  # of a run that was stopped
    exchange.give(url, work)
    there = functools.partial(exchange.work_on, function)
    run_beam(there, url, todo(), engine.runner, engine.beam_args)
    exchange.take(url, folders)


def run_beam(
    function: Callable[[str, int], object],
    work: str,
    numbers: Iterable[int],
    runner: str,
    beam_args: Sequence[str],
):
    """Calls `function(work, number)` for each number on a Beam runner.

    Beam waits for ever where no worker lives; who waits is told after a minute.

    Raises:
        ImportError: If Beam is not installed.
        ValueError: If the runner has no such flag.
    """
    options = beam_options(runner, beam_args)
    import apache_beam as beam

    with _told_of_silence(work, runner), beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "parts" >> beam.Create(list(numbers))
            | "spread" >> beam.Reshuffle()
            | "work" >> beam.Map(functools.partial(_answer, function, work))
        )


def _answer(function: Callable[[str, int], object], work: str, number: int):
    """What a worker does: it says that it lives, and goes to work."""
    with fsspec.open(f"{work}/{_ANSWERED}", "wb") as file:
        file.write(b"a worker has answered")
    function(work, number)


def _told_of_silence(work: str, runner: str) -> contextlib.AbstractContextManager:
    store, path = fsspec.core.url_to_fs(f"{work}/{_ANSWERED}")
    if store.exists(path):
        store.rm(path)

    def look(ended: threading.Event):
        for waited in range(0, SILENCE_SECONDS, 5):
            if ended.wait(min(5, SILENCE_SECONDS - waited)) or store.exists(path):
                return
        print(
            f"\n--runner={runner}: no worker has answered within {SILENCE_SECONDS} seconds. Where "
            "they have not started yet, wait; else see whether they are up and in reach, whether "
            "`python` in the PATH of Beam's worker pool is the one that has vidgen, and their log.",
            file=sys.stderr,
            flush=True,
        )

    return _beside(look)


@contextlib.contextmanager
def _beside(look: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs a function in a thread; it gets an event that is set at the end of the block."""
    ended = threading.Event()
    thread = threading.Thread(target=look, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def beam_options(runner: str, beam_args: Sequence[str]):
    """Returns Beam's PipelineOptions of flags, which Beam itself would take misspelled too.

    Raises:
        ImportError: If Beam is not installed.
        ValueError: If the runner has no such flag.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError(
            f'--runner={runner} needs Apache Beam ({error}): pip install "vidgen[beam]"'
        ) from error
    options = PipelineOptions([f"--runner={RUNNERS[runner]}", *beam_args])
    known = PipelineOptions([]).get_all_options()
    unknown = sorted({*options.get_all_options(retain_unknown_options=True)} - {*known})
    if unknown and runner not in _OWN_FLAGS:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean --{near[0]}?" if near else "."
        raise ValueError(f"--beam_args: --runner={runner} has no flag --{unknown[0]}{meant}")
    return options


@contextlib.contextmanager
def watch(folder: pathlib.Path, num_clips: int, bar) -> Iterator[None]:
    """Moves a progress bar while others write parts into a folder."""
    start = bar.n

    def look(ended: threading.Event):
        while not ended.wait(2.0):
            todo = sum(parts.size(number, num_clips) for number in parts.missing(folder, num_clips))
            bar.update(start + num_clips - todo - bar.n)

    with _beside(look):
        yield
    bar.update(start + num_clips - bar.n)


def examine_part(work: str, number: int) -> dict:
    """What a Beam worker does for a part; its child process serves all parts it is given."""
    return dict(_examiner(work).examine_part(number))


_examiners: dict[str, parts.Examiner] = {}
_lock = threading.Lock()


def _examiner(work: str) -> parts.Examiner:
    with _lock:
        if work not in _examiners:
            state = json.loads((pathlib.Path(work) / "plan.json").read_text())
            table, folder = pathlib.Path(work) / "clips.parquet", pathlib.Path(state["parts"])
            _examiners[work] = parts.Examiner(table, folder, state["config"], state["num_workers"])
        return _examiners[work]
