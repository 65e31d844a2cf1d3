"""Tar shards in the WebDataset layout: files of one key are one sample.

The key is the path up to the first dot of the file name. A sample has a video or image and its
caption in a .txt or .json file (`folder.py` says how). Shards are uncompressed, so that a clip is
read in place: `Clip.file` is its offset and size in the tar.

The layout: https://github.com/webdataset/webdataset (README, "The WebDataset Format").
"""

import glob
import itertools
import os
import posixpath
import re
import tarfile

from data_pipelines.media import limits
from data_pipelines.sources import clips, folder, rows

_BRACES = re.compile(r"\{([^{}]*)\}")


def read(pattern: str) -> list[clips.Clip]:
    """Reads all shards of a pattern, "shards/clips-{000000..000099}.tar" or "shards/*.tar".

    A shard that is cut off gives the samples before the cut, and one refused row.

    Raises:
        ValueError: If no file fits the pattern, or none can be read as a tar.
    """
    shards = expand(pattern)
    if not shards:
        raise ValueError(f"--source={pattern} names no file: give a pattern of .tar files.")
    common = posixpath.commonprefix([posixpath.dirname(s) + "/" for s in shards])
    common = common[: common.rfind("/") + 1]
    table, numbers, readable = rows.Rows("webdataset", "."), itertools.count(1), 0
    for shard in shards:
        name = shard.removeprefix(common).removesuffix(".tar")
        try:
            with clips.open_binary(shard) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                for key, sample in _samples(file, size):
                    readable += 1
                    _add(table, next(numbers), shard, f"{name}/{key}", sample)
        except FileNotFoundError:
            refused = rows.Refused("missing file", f"there is no {shard}.")
            table.add(next(numbers), id=f"{name}.tar", refused=refused)
        except (OSError, tarfile.TarError) as error:
            refused = rows.Refused("damaged", f"{shard} ends in an error: {error}.")
            table.add(next(numbers), id=f"{name}.tar", refused=refused)
    if not readable:
        raise ValueError(f"{pattern}: no sample could be read; {table.clips[0].given['refused']}")
    return table.clips


def expand(pattern: str) -> list[str]:
    """Lists the files of a pattern with {000..123}, {a,b}, * and ?, in order."""
    found = _BRACES.search(pattern)
    if found:
        first, dots, last = found[1].partition("..")
        if dots and first.isdecimal() and last.isdecimal():
            if int(last) - int(first) > 1_000_000:
                raise ValueError(f"--source={pattern} names over a million shards.")
            parts = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        else:
            parts = found[1].split(",")
        names = [pattern[: found.start()] + part + pattern[found.end() :] for part in parts]
        return [shard for name in names for shard in expand(name)]
    if not re.search(r"[*?\[]", pattern):
        return [pattern]
    if "://" in pattern:
        import fsspec

        files, path = fsspec.core.url_to_fs(pattern)
        return [files.unstrip_protocol(name) for name in sorted(files.glob(path))]
    return sorted(glob.glob(pattern, recursive=True))


def _samples(file, size: int):
    """Yields (key, {extension: (offset, size, content or Refused)}) of neighbouring members."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        key, sample, broken = None, {}, None
        members = iter(tar)
        while True:
            try:
                member = next(members, None)
                content: bytes | rows.Refused = b""
                if member is None:
                    break
                if not member.isreg() or member.issparse():
                    continue
                place, _, extension = posixpath.basename(member.name).partition(".")
                extension = "." + extension.lower()
                if member.offset_data + member.size > size:
                    content = rows.Refused("truncated", f"the shard ends inside of {member.name}.")
                elif extension in (".txt", ".json"):
                    content = tar.extractfile(member).read(folder.MAX_SIDECAR + 1)
            except (OSError, tarfile.TarError) as error:
                broken = error
                break
            this = posixpath.join(posixpath.dirname(member.name), place)
            if this != key:
                if sample:
                    yield key, sample
                key, sample = this, {}
            sample[extension] = (member.offset_data, member.size, content)
            tar.members = []  # or it keeps all headers of a shard
        if sample:
            yield key, sample
        if broken:
            raise broken


def _add(table: rows.Rows, number: int, shard: str, key: str, sample: dict):
    parts = [
        (offset, size, content)
        for suffix in limits.VIDEO_SUFFIXES + limits.IMAGE_SUFFIXES
        for extension, (offset, size, content) in sample.items()
        if extension.endswith(suffix)
    ]
    file, found, refused = "", {}, None
    try:
        if not parts:
            raise rows.Refused("missing file", f"the sample has only {', '.join(sample)[:200]}.")
        offset, size, content = parts[0]
        file = f"tar:{shard}#{offset}+{size}"
        for broken in (content, *(content for _, _, content in sample.values())):
            if isinstance(broken, rows.Refused):
                raise broken
        for extension in (".json", ".txt"):
            if extension in sample:
                found |= folder.parse_sidecar(key + extension, sample[extension][2])
    except rows.Refused as error:
        refused = error
    table.add(number, path=key, file=file, refused=refused, **folder.caption_of(found))
