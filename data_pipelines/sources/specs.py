"""Sources of clips: every layout that data sets come in, read into one clip table.

    FOLDER                      videos and images with NAME.txt or NAME.json beside them
    FILE.csv .parquet .jsonl    a path and a caption a row
    shards/*.tar                WebDataset shards; {000000..000099} works too
    openvid:FOLDER              OpenVid-1M as published: table and zip parts
    miradata:FOLDER or FILE     MiraData as published: table and whole videos

Options follow a question mark: "clips.csv?path=file&text=caption", "clips.csv?root=/data" (paths
may lead anywhere below /data), "miradata:DIR?caption=short_caption",
"openvid:DIR?csv=OpenVidHD.csv".

    python -m data_pipelines.sources SPEC      counts the clips, and the refused ones by reason
"""

import dataclasses
import inspect
import os
import re
from collections.abc import Iterable

from data_pipelines.sources import clips, folder, miradata, openvid, tables, webdataset


def read(spec: str | os.PathLike) -> list[clips.Clip]:
    """Reads a clip table; rows that cannot be used have `given["refused"]` = "reason: message".

    Raises:
        ValueError: If there is no such source, or nothing in it can be read.
    """
    name, options = _split_options(os.fspath(spec))
    kind, found, rest = name.partition(":")
    if found and kind in ("openvid", "miradata"):
        reader = {"openvid": openvid.read, "miradata": miradata.read}[kind]
        name = rest
    elif name.endswith(".tar"):
        reader = webdataset.read
    elif "://" in name or name.lower().endswith(tables.SUFFIXES):
        reader = tables.read
    elif os.path.isdir(name):
        reader = folder.read
    elif os.path.exists(name):
        raise ValueError(
            f"--source={name} is neither a folder nor a table: its name has to end in "
            f"{', '.join(tables.SUFFIXES)} or .tar."
        )
    else:
        raise ValueError(f"--source={name} does not exist: give a CSV file or a folder.")
    known = list(inspect.signature(reader).parameters)[1:]
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"--source={spec}: this source has no option {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}."
        )
    return reader(name, **options)


def read_all(specs: Iterable[str | os.PathLike]) -> list[clips.Clip]:
    """Reads several sources into one table; an id of an earlier one gets "@2" in the second.

    Raises:
        ValueError: As `read`.
    """
    table, ids = [], set()
    for number, spec in enumerate(specs, 1):
        for clip in read(spec):
            name = clip.id
            while name in ids:
                name += f"@{number}"
            ids.add(name)
            table.append(dataclasses.replace(clip, id=name))
    return table


def _split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Splits "NAME?key=value&key=value"; a question mark of a glob stays in the name."""
    found = re.fullmatch(r"(.+?)\?(\w+=[^&?]+(?:&\w+=[^&?]+)*)", spec)
    if not found or os.path.exists(spec):
        return spec, {}
    return found[1], dict(pair.split("=", 1) for pair in found[2].split("&"))
