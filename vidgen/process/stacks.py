"""Stacks of the processes of a run that hangs: a file each, and who is elsewhere than the rest."""

import collections
import pathlib
import re

FRAMES = 8  # of a stack, that tell two places apart
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')


def path(folder: pathlib.Path, process: int) -> pathlib.Path:
    """Where a process writes its stacks."""
    return folder / "stacks" / f"{process}.txt"


def group(folder: pathlib.Path, since: float) -> list[tuple[list[int], list[str]]]:
    """Groups processes by where their main threads are, the smallest group first.

    Args:
        folder: The working folder.
        since: Files that were last written before this time, in seconds, are of an earlier end.

    Returns:
        (processes, frames as "file:line function", the innermost first) of each group.
    """
    groups: dict[tuple, list[int]] = collections.defaultdict(list)
    for file in sorted((folder / "stacks").glob("*.txt")):
        if file.stem.isdecimal() and file.stat().st_mtime >= since:
            groups[tuple(main_thread(file.read_text(errors="replace")))].append(int(file.stem))
    found = [(sorted(processes), list(frames)) for frames, processes in groups.items()]
    return sorted(found, key=lambda entry: (len(entry[0]), entry[0]))


def main_thread(text: str) -> list[str]:
    """The innermost frames of the main thread, which faulthandler writes last, in the last dump."""
    threads = re.split(r"^(?:Current thread|Thread) 0x\w+.*$", text, flags=re.MULTILINE)
    frames = [match for match in map(_FRAME.match, threads[-1].splitlines()) if match]
    if len(threads) < 2:
        return []
    return [f"{pathlib.Path(m['file']).name}:{m['line']} {m['name']}" for m in frames[:FRAMES]]


def describe(folder: pathlib.Path, since: float) -> str:
    """The groups in words, or "" where there are no stacks."""
    lines = []
    for processes, frames in group(folder, since):
        who = f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))}"
        lines.append(f"  {who}: {' < '.join(frames[:4]) or 'no stack'}")
    return "\n".join(["Main threads, the smallest group first:", *lines]) if lines else ""
