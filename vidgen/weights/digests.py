"""The sha256 of every file of a folder, and files that appear whole or not at all.

Orbax keeps no checksum of the arrays in a checkpoint, so a flipped bit would load as another
number. DIGESTS has a line for each file, as `sha256sum` writes it, and a last line that seals them.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent import futures

import jax

DIGESTS = "DIGESTS"
# Orbax writes these two after the digests, and nothing here reads them.
UNDIGESTED = (DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt")
NOT_READABLE = "is not readable"  # which may pass
THREADS = 8  # hashing and reading release the interpreter's lock


def write(folder: pathlib.Path) -> None:
    """Forces all files of a folder to the disk and writes their digests into it."""
    names = _files(folder)
    with futures.ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: sha256(folder / name, sync=True), names)
        lines = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    seal = hashlib.sha256(lines.encode()).hexdigest()
    write_atomically(folder / DIGESTS, f"{lines}# {seal}\n".encode())
    for name in {str(pathlib.Path(name).parent) for name in names}:
        fsync(folder / name)


def verify(folder: pathlib.Path, items: Iterable[str] | None = None) -> str:
    """Compares a folder with its digests; several processes share the work.

    Args:
        folder: A folder that `write` has seen.
        items: Look into these folders in it only, and in this process alone.

    Returns:
        What is wrong, or "".
    """
    expected, problem = _expected(folder)
    if problem:
        return problem
    if items is None:
        if added := _added(folder, expected):
            return added
        mine = sorted(expected)[jax.process_index() :: jax.process_count()]
    else:
        mine = [name for name in expected if name.split("/")[0] in items]
    look = lambda name: _problem(folder / name, name, expected[name])
    with futures.ThreadPoolExecutor(THREADS) as pool:
        problems = [problem for problem in pool.map(look, mine) if problem]
    more = f", and {len(problems) - 1} more files" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def problems(folder: pathlib.Path) -> Iterator[str]:
    """Looks at one file after another, as `verify` does: what is wrong with it, or ""."""
    expected, problem = _expected(folder)
    yield problem or _added(folder, expected)
    for name in sorted(expected)[jax.process_index() :: jax.process_count()]:
        yield _problem(folder / name, name, expected[name])


def _expected(folder: pathlib.Path) -> tuple[dict[str, str], str]:
    """Returns ({file: its digest}, what is wrong with the list of digests)."""
    try:
        *lines, seal = (folder / DIGESTS).read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return {}, f"{DIGESTS} is missing, so the checkpoint is not whole"
    except (OSError, ValueError) as error:
        return {}, f"{DIGESTS} is not readable ({error})"
    if seal != f"# {hashlib.sha256(''.join(lines).encode()).hexdigest()}\n":
        return {}, f"{DIGESTS} is changed or cut short"
    return dict(reversed(line.rstrip("\n").split("  ", 1)) for line in lines), ""


def _added(folder: pathlib.Path, expected: Iterable[str]) -> str:
    extra = set(_files(folder)) - set(expected)
    return f"{sorted(extra)[0]} was added" if extra else ""


def _problem(path: pathlib.Path, name: str, digest: str) -> str:
    try:
        return "" if sha256(path) == digest else f"{name} is changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} {NOT_READABLE} ({error.strerror})"


def sample(path: str | os.PathLike) -> str:
    """Names weights by the sizes of their files and 64 pieces of each: quick at any size.

    It tells weights apart that were trained apart; what changed in one number it does not see.

    Args:
        path: A file, or a folder of .safetensors files or of checkpoints.

    Returns:
        Hexadecimal digits; "" where there is nothing of the kind.
    """
    if not os.fspath(path) or not os.path.exists(path):  # no path is not the current folder
        return ""
    path = pathlib.Path(path)
    files = [path]
    if path.is_dir():
        files = sorted([*path.rglob("*.safetensors"), *path.rglob(DIGESTS)])
    digest = hashlib.sha256()
    for name in files:
        size = name.stat().st_size
        digest.update(f"{name.relative_to(path)} {size}\n".encode())
        with open(name, "rb") as file:
            for piece in range(64):
                file.seek(size * piece // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()[:32] if files else ""


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one, and nothing between."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync(path.parent)


def fsync(folder: pathlib.Path) -> None:
    """Forces the names in a folder, such as after a rename, to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: pathlib.Path) -> list[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if name.as_posix() not in UNDIGESTED)


def sha256(path: pathlib.Path, sync: bool = False) -> str:
    """Hexadecimal digest of a file; `sync` forces it to the disk first."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
