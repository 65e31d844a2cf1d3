"""A row of a clip table, and how its file is opened: on a disk, inside an archive, or remote.

`Clip.file` is a plain path, an fsspec URL (`s3://bucket/a.mp4`), or one of these, so that nothing
has to be unpacked; ARCHIVE is again any of them:

    zip://MEMBER::ARCHIVE      a member of a zip archive, stored or deflated (fsspec's chained form)
    zip://MEMBER#PLACE::ARCHIVE    the same, stored at OFFSET+SIZE+CRC32, as `addresses` names it
    tar:ARCHIVE#OFFSET+SIZE    bytes of an uncompressed tar, found once when the table was made
    join:PREFIX                the files PREFIXaa, PREFIXab, ... one after the other (`split`)

Where a place is told, the archive's directory is not needed: it takes 0.1 s for 30,000 members, and
a process keeps eight. Members of up to 64 MiB are read whole and against their CRC-32, larger ones
as they are asked for.
"""

import bisect
import collections
import dataclasses
import io
import itertools
import os
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

_WHOLE_BYTES = 64 << 20  # a member up to this size is read into memory at once
_OPEN_ARCHIVES = 8  # a directory of 30,000 members takes about 20 MB


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One row of a clip table: what a source says of a clip, before anything was opened.

    Attributes:
        id: Unique in the table and stable: a relative POSIX path or the data set's own id, without
            ".." and control characters.
        file: What `open_binary` opens.
        text: Caption as given, in NFC without control characters; None if there is none.
        source: Name of the data set: "folder", "csv", "openvid", "miradata", "webdataset", ...
        start: Seconds in the file; None: from the beginning.
        end: Seconds in the file; None: to its end.
        given: Scores and labels that the source states, {"aesthetic": 5.1, "camera": "pan_left"}.
            The key "refused" holds "reason: message" where the row itself cannot be used.
    """

    id: str
    file: str
    text: str | None
    source: str = ""
    start: float | None = None
    end: float | None = None
    given: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


def open_binary(clip_file: str | os.PathLike) -> BinaryIO:
    """Opens what `Clip.file` names; the file can seek.

    Raises:
        OSError: If there is no such file or member, or the archive around it is damaged.
    """
    name = os.fspath(clip_file)
    if name.startswith("zip://"):
        return _open_zip_member(*_split_chain(name))
    if name.startswith("tar:"):
        archive, _, place = name.removeprefix("tar:").rpartition("#")
        if not re.fullmatch(r"\d+\+\d+", place):
            raise FileNotFoundError(f"{name!r} is not of the form tar:ARCHIVE#OFFSET+SIZE.")
        offset, size = map(int, place.split("+"))
        return io.BufferedReader(_Window([(open_binary(archive), offset, size)]), 1 << 16)
    if name.startswith("join:"):
        pieces = split_pieces(name.removeprefix("join:"))
        windows = [(open_binary(path), 0, os.path.getsize(path)) for path in pieces]
        return io.BufferedReader(_Window(windows), 1 << 16)
    if "://" not in name:
        return open(name, "rb")
    import fsspec  # only remote files need it

    return fsspec.open(name, "rb").open()


def split_pieces(prefix: str) -> list[str]:
    """Lists the files PREFIXaa, PREFIXab, ... that `split` makes of one file, in order.

    Raises:
        FileNotFoundError: If there is none, or one in the middle is missing.
    """
    letters = map("".join, itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=2))
    folder, stem = os.path.split(prefix)
    ends = [n[len(stem) :] for n in os.listdir(folder or ".") if n.startswith(stem)]
    ends = sorted(end for end in ends if re.fullmatch("[a-z]{2}", end))
    expected = list(itertools.islice(letters, len(ends)))
    if not ends or ends != expected:
        lost = sorted(set(expected) - set(ends)) or ["aa"]
        raise FileNotFoundError(f"the piece {prefix}{lost[0]} is missing: fetch it again.")
    return [prefix + end for end in ends]


def addresses(archive: str) -> dict[str, str]:
    """Returns {member: what opens it} of a zip archive, in its own order.

    Args:
        archive: As in `zip://MEMBER::ARCHIVE`.

    Raises:
        OSError: If it is missing or no zip archive.
    """
    found = {}
    for info in _archive(os.getpid(), archive).infolist():
        is_plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED
        place = f"#{info.header_offset}+{info.file_size}+{info.CRC:08x}" if is_plain else ""
        if not info.is_dir():
            found[info.filename] = f"zip://{info.filename}{place}::{archive}"
    return found


def reading_order(clip_file: str) -> tuple[str, int]:
    """Returns what members of archives are sorted by to be read from begin to end."""
    if clip_file.startswith("zip://"):
        member, _, archive = clip_file.partition("::")
        place = _PLACE.search(member)
        return archive, int(place[1]) if place else 0
    if clip_file.startswith("tar:"):
        archive, _, place = clip_file.rpartition("#")
        return archive, int(place.partition("+")[0])
    return "", 0


def _split_chain(name: str) -> tuple[str, str]:
    member, found, archive = name.removeprefix("zip://").partition("::")
    if not (member and found and archive):
        raise FileNotFoundError(f"{name!r} is not of the form zip://MEMBER::ARCHIVE.")
    return member, archive.removeprefix("file://")


def _open_zip_member(member: str, archive: str) -> BinaryIO:
    if place := _PLACE.search(member):
        member = member[: place.start()]
        offset, size, crc = int(place[1]), int(place[2]), int(place[3], 16)
        opened = size <= _WHOLE_BYTES and _open_stored(member, archive, offset, size, crc)
        if opened:
            return opened
    try:
        opened = _archive(os.getpid(), archive)
        info = opened.getinfo(member)
        if info.file_size > _WHOLE_BYTES:
            return opened.open(info)
        return io.BytesIO(opened.read(info))
    except KeyError as error:
        raise FileNotFoundError(f"{archive} has no member {member!r}.") from error
    except _ZIP_ERRORS as error:
        raise OSError(f"{member!r} in {archive} cannot be read: {error}.") from error


def _open_stored(member: str, archive: str, offset: int, size: int, crc: int) -> BinaryIO | None:
    """Reads a member without the directory; None where it is not at its place any more."""
    with open_binary(archive) as file:
        file.seek(offset)
        head = file.read(_LOCAL_HEADER.size)
        if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\3\4"):
            return None
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
        if file.read(name_bytes) not in (member.encode(), member.encode("cp437", "replace")):
            return None
        file.seek(offset + len(head) + name_bytes + extra_bytes)
        content = file.read(size)
    if len(content) < size or zlib.crc32(content) != crc:
        raise OSError(f"{member!r} in {archive} cannot be read: it is cut, or its CRC-32 is wrong.")
    return io.BytesIO(content)


_PLACE = re.compile(r"#(\d+)\+(\d+)\+([0-9a-f]{8})$")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1  # of a member's flags
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_archives: collections.OrderedDict = collections.OrderedDict()
_lock = threading.Lock()


def _archive(pid: int, archive: str) -> zipfile.ZipFile:
    """Returns the opened archive; one for each process, since a fork shares a file's position."""
    key = (pid, archive)
    if "://" not in archive and not archive.startswith(("join:", "tar:")):
        status = os.stat(archive)
        key = (pid, archive, status.st_size, status.st_mtime_ns)
    with _lock:
        if key not in _archives:
            try:
                _archives[key] = zipfile.ZipFile(open_binary(archive))
            except _ZIP_ERRORS as error:
                raise OSError(f"{archive} is not a zip archive: {error}.") from error
            while len(_archives) > _OPEN_ARCHIVES:
                _archives.popitem(last=False)  # open members keep the file alive
        _archives.move_to_end(key)
        return _archives[key]


class _Window(io.RawIOBase):
    """Ranges (file, offset, size) of files, seen as one file."""

    def __init__(self, ranges: list[tuple[BinaryIO, int, int]]):
        self._ranges = ranges
        self._ends = list(itertools.accumulate(size for _, _, size in ranges))
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise OSError(22, "seek before the beginning of the file")
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer) -> int:
        number = bisect.bisect_right(self._ends, self._place)
        if number == len(self._ranges):
            return 0
        file, offset, size = self._ranges[number]
        begin = self._place - (self._ends[number] - size)
        file.seek(offset + begin)
        content = file.read(min(len(buffer), size - begin))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self):
        for file, _, _ in self._ranges:
            file.close()
        super().close()
