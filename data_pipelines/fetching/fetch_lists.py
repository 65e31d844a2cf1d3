"""What to fetch: the files of OpenVid-1M, the videos of MiraData, or the lines of a list.

The listing of the Hugging Face hub (GET /api/datasets/NAME/tree/main/FOLDER) gives path, size and,
for large files, lfs.oid, which is the SHA-256 of the content; it comes in pages, the next one named
in the header Link. That is what huggingface_hub's `list_repo_tree` reads.
"""

import dataclasses
import re
import urllib.parse

import data_pipelines.sources.miradata as mira
from data_pipelines.fetching import web
from data_pipelines.process import text_files
from data_pipelines.sources import rows

OPENVID = "datasets/nkp37/OpenVid-1M"
_WITHOUT_HUB = (
    "The list of files comes from there: run this where the hub can be reached (proxies are not "
    "used), or name a mirror of it with --hub=URL or HF_ENDPOINT."
)
_PAGES = ("youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be")


@dataclasses.dataclass(frozen=True)
class Item:
    """One file to fetch; `path` is below the folder of the download."""

    path: str
    remote: web.Remote
    is_page: bool = False  # a web page around a video: for the external command


def openvid(
    parts: str, hub: str, limits: web.Limits, *, hd: bool = False, token: str | None = None
) -> list[Item]:
    """Lists the table and the chosen parts of OpenVid-1M (or OpenVidHD), pieces of parts included.

    Args:
        parts: Numbers, "0-3,7"; "all", or "" for the table alone.
        hub: "https://huggingface.co", or a mirror of it.
        limits: For the requests.
        hd: OpenVidHD instead.
        token: Access token of the hub.

    Raises:
        ValueError: If `parts` cannot be read or names a part that is not there.
        FetchError: If the hub does not answer.
    """
    numbers = None if parts == "all" else parse_ranges(parts, "--parts")
    prefix = "OpenVidHD/OpenVidHD_part_" if hd else "OpenVid_part"
    named = re.compile(re.escape(prefix) + r"(\d+)(?:\.zip|_part_?[a-z]{2})")
    table = "data/train/OpenVidHD.csv" if hd else "data/train/OpenVid-1M.csv"
    items, found = [], set()
    for folder in ("data/train",) if numbers == set() else ("data/train", "OpenVidHD" * hd):
        url = f"{hub}/api/{OPENVID}/tree/main/{folder}".rstrip("/")
        while url:
            try:
                entries, url = web.read_json(url, limits, token)
            except web.FetchError as error:
                raise web.FetchError(error.reason, f"{error} {_WITHOUT_HUB}") from error
            for entry in entries:
                path = str(entry.get("path"))
                part = named.fullmatch(path)
                if path != table and not (part and (numbers is None or int(part[1]) in numbers)):
                    continue
                found |= {int(part[1])} if part else set()
                stored = entry.get("lfs") or {}
                remote = web.Remote(
                    f"{hub}/{OPENVID}/resolve/main/{path}",
                    size=stored.get("size", entry.get("size")),
                    sha256=stored.get("oid"),
                    token=token,
                )
                items.append(Item(path, remote))
    if lost := sorted((numbers or set()) - found):
        raise ValueError(
            f"--parts: {hub} has no part {', '.join(map(str, lost[:10]))}; there are "
            f"{'parts 1 and up of OpenVidHD' if hd else 'the parts 0 to 185'}."
        )
    return sorted(items, key=lambda item: (item.path.endswith(".zip"), item.path))


def miradata(table: str, ids: str) -> tuple[list[Item], dict[str, rows.Refused]]:
    """Lists the whole videos behind the clips of MiraData's table, each once.

    Args:
        table: The table, CSV or parquet.
        ids: Download ids (the number before the dot of clip_id), "0-999"; "all".

    Returns:
        (items, {row: why it has no video}).

    Raises:
        ValueError: If the table cannot be read.
    """
    numbers = None if ids == "all" else parse_ranges(ids, "--ids")
    items, refused = {}, {}
    for number, row in mira.read_table(mira.find_table(table, "--csv=")):
        try:
            if isinstance(row, rows.Refused):
                raise row
            folder, name = mira.clip_name(row)
        except rows.Refused as error:
            refused[f"row {number}"] = error
            continue
        if numbers is not None and int(name[:12]) not in numbers:
            continue
        url = row.get("video_url") or f"https://www.youtube.com/watch?v={row.get('video_id')}"
        path = f"raw_video/{folder}/{name}.mp4"
        items.setdefault(path, Item(path, web.Remote(str(url)), is_page=_is_page(str(url))))
    if not items and not refused:
        raise ValueError(f"--ids={ids}: {table} has no clip of these download ids.")
    return list(items.values()), refused


def urls(file: str) -> list[Item]:
    """Reads lines of URL, path below the folder (else the URL's last part) and SHA-256.

    Raises:
        ValueError: If a line cannot be used, or two lines mean one path.
    """
    items: dict[str, Item] = {}
    for number, line in enumerate(_lines(file, "--urls"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        url, path, digest = (*words, "", "")[:3]
        if "://" not in url:
            raise ValueError(f"--urls={file}, line {number}: {url[:80]!a} is no URL: https://...")
        path = path or urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
        try:
            path = rows.clean_id(path)
        except rows.Refused as error:
            raise ValueError(f"--urls={file}, line {number}: {error}") from error
        if path in items:
            raise ValueError(f"--urls={file}, line {number}: {path} stands in an earlier line.")
        if digest and not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ValueError(f"--urls={file}, line {number}: {digest[:80]} is no SHA-256 sum.")
        remote = web.Remote(url, sha256=digest.lower() or None)
        items[path] = Item(path, remote, is_page=_is_page(url))
    if not items:
        raise ValueError(f"--urls={file} has no lines: give one URL a line.")
    return list(items.values())


def with_sums(items: list[Item], file: str) -> list[Item]:
    """Adds the checksums of a file as sha256sum or md5sum write it.

    Raises:
        ValueError: If a line of it is no checksum.
    """
    sums = {}
    for number, line in enumerate(_lines(file, "--sums"), start=1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{32}) [ *](.+)", line)
        if not found:
            raise ValueError(f"--sums={file}, line {number}: not of the form 'SUM  PATH'.")
        sums[found[2].removeprefix("./")] = found[1].lower()
    return [
        dataclasses.replace(
            item,
            remote=dataclasses.replace(
                item.remote, **{"sha256" if len(sums[item.path]) == 64 else "md5": sums[item.path]}
            ),
        )
        if item.path in sums
        else item
        for item in items
    ]


def _lines(file: str, flag: str) -> list[str]:
    try:
        return text_files.read_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "") or "it is not UTF-8"
        raise ValueError(f"{flag}={file} cannot be read ({reason}): give a text file.") from error


def parse_ranges(text: str, name: str) -> set[int]:
    """Reads "0-3,7" as {0, 1, 2, 3, 7}."""
    numbers: set[int] = set()
    for word in filter(None, text.replace(" ", "").split(",")):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        if not found or int(found[2] or found[1]) - int(found[1]) not in range(10_000_000):
            raise ValueError(f'{name}={text} is no list of numbers: write "0-3,7", or "all".')
        numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return numbers


def _is_page(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.hostname in _PAGES
    except ValueError:
        return False  # `fetch` says what is wrong with it
