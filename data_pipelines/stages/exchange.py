"""Parts and shards by way of an object store, for clusters whose machines share no disk.

    URL/KEY/given/    what workers need: the config, the clip table, the verdicts
    URL/KEY/done/     what they have made

Stores put a file whole or not at all, so what is there is complete. The marker of a shard, its
.json, is put last and fetched last.
"""

import functools
import json
import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable

import fsspec

_GIVEN = ("plan.json", "clips.parquet", "known.parquet", "new.parquet", "key", "state.json")


def place(url: str, key: str) -> str:
    """Returns the folder of one job in a store."""
    return f"{url.rstrip('/')}/{key[:16]}"


def check(url: str):
    """Refuses a URL that no installed package can open.

    Raises:
        ValueError: If it is one.
    """
    try:
        fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"--exchange={url} cannot be opened ({error}): give a URL such as gs://bucket/job."
        ) from error


def give(url: str, work: pathlib.Path):
    """Puts what workers need to go on from here."""
    store, root = fsspec.core.url_to_fs(url)
    store.makedirs(f"{root}/given", exist_ok=True)
    for name in _GIVEN:
        if (work / name).exists():
            store.put_file(os.fspath(work / name), f"{root}/given/{name}")


def take(url: str, folders: dict[str, pathlib.Path]):
    """Fetches what workers have made and is not here: folders by their name in the store."""
    store, root = fsspec.core.url_to_fs(url)
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        there = store.find(f"{root}/done/{name}")
        for path in sorted(there, key=lambda path: path.endswith(".json")):
            here = folder / path.rpartition("/")[2]
            if not here.exists():
                part = here.with_name(f"{here.name}.{uuid.uuid4().hex}.part")
                store.get_file(path, os.fspath(part))
                os.replace(part, here)


def work_on(function: Callable[[str, int], object], url: str, number: int):
    """What a Beam worker does: `function(work, number)` in a folder of its own, then the upload."""
    work = _folder(url, function.__name__)
    function(os.fspath(work), number)
    store, root = fsspec.core.url_to_fs(url)
    for name in ("parts", "cuts", "shards"):
        made = [path for path in (work / name).glob(f"{number:05d}[-.]*") if path.suffix != ".part"]
        for path in sorted(made, key=lambda path: path.suffix == ".json"):
            store.makedirs(f"{root}/done/{name}", exist_ok=True)
            store.put_file(os.fspath(path), f"{root}/done/{name}/{path.name}")
            path.unlink()


@functools.cache
def _folder(url: str, step: str) -> pathlib.Path:
    """Returns a work folder of this process, with what was given when `step` began."""
    work = pathlib.Path(tempfile.mkdtemp(prefix=f"{step}-"))
    store, root = fsspec.core.url_to_fs(url)
    for path in store.ls(f"{root}/given", detail=False):
        store.get_file(path, os.fspath(work / path.rpartition("/")[2]))
    state = json.loads((work / "plan.json").read_text())
    (work / "plan.json").write_text(json.dumps(state | {"parts": os.fspath(work / "parts")}))
    for name in ("parts", "shards"):
        (work / name).mkdir()
    return work
