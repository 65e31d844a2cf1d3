"""Places that a command will write to, checked before it begins to work."""

import os
import pathlib
import tempfile


def check_folder(path: str | os.PathLike, flag: str = "--out") -> None:
    """Refuses a folder that cannot be made or written to; makes nothing.

    Raises:
        ValueError: If a file is in the way, or nothing may be written there.
    """
    if not os.fspath(path):
        raise ValueError(f"{flag} is empty: name a folder.")
    _check(f"{flag}={path}", pathlib.Path(path).absolute())


def check_file(path: str | os.PathLike, flag: str = "--out") -> None:
    """Refuses a file that cannot be written; makes nothing.

    Raises:
        ValueError: If it is a folder, or nothing may be written there.
    """
    if not os.fspath(path):
        raise ValueError(f"{flag} is empty: name a file.")
    if os.path.isdir(path):
        raise ValueError(f"{flag}={path} is a folder: name a file in it.")
    _check(f"{flag}={path}", pathlib.Path(path).absolute().parent)


def _check(given: str, folder: pathlib.Path) -> None:
    if "://" in given:
        raise ValueError(
            f"{given} is a URL, and files are written to folders alone: name one, and copy it "
            "there when it is finished (shards are read from URLs)."
        )
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    problem = "" if there.is_dir() else "is no folder"
    if not problem:
        try:
            with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell
                pass
        except OSError as error:
            problem = f"cannot be written to ({error.strerror})"
    if problem:
        raise ValueError(f"{given}: {there} {problem}: name a place where you may write.")
