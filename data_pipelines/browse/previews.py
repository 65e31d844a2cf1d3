"""Previews of many clips, in packs.

Packs of 100 are scripts: a page that was opened as a file loads a whole pack, one from a server the
bytes of the clips in sight. Packs appear complete, in order, and are not made again.
"""

import base64
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm

from data_pipelines.browse import columns
from data_pipelines.browse.thumbnail import MEMORY_BYTES, Preview, Task
from data_pipelines.shards import builder
from data_pipelines.sources import clips
from data_pipelines.workers import children

PACK = 100  # clips
DEADLINE_SECONDS = 30.0  # for one clip
FORMAT = 1
MAX_SOURCE_BYTES = 1 << 30  # of a file that a preview is made from
ARCHIVES = ("zip://", "tar:", "join:")  # forms of `clips.Clip.file` inside other files


def sample(ids: Sequence[str], count: int | None) -> np.ndarray:
    """Returns the rows of `count` clips (None: all), ascending; chosen by id, so always the same.

    A larger count takes the clips of a smaller one, and more.
    """
    if count is None or count >= len(ids):
        return np.arange(len(ids))
    rank = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.sort(np.array(sorted(range(len(ids)), key=rank.__getitem__)[:count], np.int64))


def write(
    folder: pathlib.Path,
    rows: Sequence[int],
    task_of: Callable[[int], Task | str],
    num_workers: int,
) -> list[str]:
    """Writes the previews of these rows as packs, and returns a note for each: "" or a reason.

    Args:
        folder: Of the packs; those that it holds are kept.
        rows: One a preview; preview number i is in pack i // PACK.
        task_of: Row -> its task, or why there can be none.
        num_workers: Children.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packs = range(math.ceil(len(rows) / PACK))
    todo = [pack for pack in packs if not _path(folder, "posters", pack).exists()]
    numbers = [n for pack in todo for n in range(pack * PACK, min(len(rows), (pack + 1) * PACK))]
    with (
        children.Pool(
            num_workers,
            "data_pipelines.browse.thumbnail:make_maker",
            deadline_seconds=DEADLINE_SECONDS,
            memory_bytes=MEMORY_BYTES,
        ) as pool,
        concurrent.futures.ThreadPoolExecutor(num_workers) as threads,
        tqdm.tqdm(total=len(rows), desc="previews", unit="clip", mininterval=0.5) as progress,
    ):
        progress.update(len(rows) - len(numbers))

        def call(task: Task | str) -> Preview:
            if isinstance(task, str):
                return Preview(note=task)
            try:
                if isinstance(task.source, bytes):
                    return pool(task)
                with clips.open_binary(task.source) as file:
                    if task.source.startswith(ARCHIVES):
                        content = file.read(MAX_SOURCE_BYTES)
                        return pool(dataclasses.replace(task, source=content))
                    return pool(task, files=[file])
            except children.WorkerDied as error:
                return Preview(note=f"decoder {error.reason}")
            except OSError:
                return Preview(note="file not here")

        done: list[Preview] = []
        tasks = (task_of(rows[number]) for number in numbers)
        for preview in _in_order(lambda task: threads.submit(call, task), tasks, 2 * num_workers):
            done.append(preview)
            progress.update()
            if len(done) == PACK:
                _write_pack(folder, todo.pop(0), done)
                done = []
        if done:  # only the last pack of all can hold fewer
            _write_pack(folder, todo.pop(0), done)
    return _write_places(folder, len(packs))


def _in_order(submit: Callable, tasks: Iterable, ahead: int) -> Iterator:
    """Yields results in the order of the tasks; no more than `ahead` wait, with their bytes."""
    queue: collections.deque = collections.deque()
    for task in tasks:
        queue.append(submit(task))
        if len(queue) > ahead:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


def _write_pack(folder: pathlib.Path, pack: int, previews: list[Preview]):
    """Writes the moving pictures and then the posters, which mark the pack as complete."""
    notes = [preview.note for preview in previews]
    for kind, contents in (
        ("motions", [preview.motion for preview in previews]),
        ("posters", [preview.poster for preview in previews]),
    ):
        coded = [base64.b64encode(content) for content in contents]
        head = {"sizes": [len(content) for content in coded], "notes": notes}
        # one line a clip, so that its bytes can be read alone: see _write_places
        head = f'browse.pack("{kind}",{pack},{json.dumps(head)},[\n'.encode("ascii")
        lines = b"".join(b'"' + content + b'",\n' for content in coded)
        builder.write_whole(_path(folder, kind, pack), head + lines + b"]);\n")


def _write_places(folder: pathlib.Path, packs: int) -> list[str]:
    """Writes where each preview begins in its pack, and returns the notes of all."""
    places, notes = {}, []
    for kind in ("posters", "motions"):
        heads, sizes = [], []
        for pack in range(packs):
            with open(_path(folder, kind, pack), "rb") as file:
                line = file.readline()
            head = json.loads(line[line.index(b"{") : line.rindex(b"}") + 1])
            heads.append(len(line))
            sizes += head["sizes"]
            notes += head["notes"] if kind == "posters" else []
        places[kind] = {"heads": heads, "sizes": columns.packed(np.array(sizes, np.uint32))}
    builder.write_whole(folder / "places.js", columns.script("places", places))
    return notes


def num_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _path(folder: pathlib.Path, kind: str, pack: int) -> pathlib.Path:
    return folder / f"{kind}-{pack:05d}.js"
