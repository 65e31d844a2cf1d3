"""Records of CSV tables, some of whose quotes were never closed.

Python's reader takes all up to the next quote, or to the end, for one cell, and the rows in it are
gone. Here the row with the quote is a verdict, and the table goes on in the line after it.
"""

import collections
import csv
from collections.abc import Callable, Iterable, Iterator

_MOST_LINES = 256  # of one record: an attempt to close a quote has an end


class _Lines:
    """Lines of a file, which can be given back; `taken` are those since it was emptied."""

    def __init__(self, file: Iterable[str]):
        self._file, self._again = iter(file), collections.deque()
        self.taken: list[str] = []

    def __iter__(self):
        return self

    def __next__(self) -> str:
        if len(self.taken) == _MOST_LINES:
            raise StopIteration
        line = self._again.popleft() if self._again else next(self._file)
        self.taken.append(line)
        return line

    def give_back(self, lines: list[str]) -> None:
        self._again.extendleft(reversed(lines))


def read(file: Iterable[str], is_row: Callable[[list[str]], bool]) -> Iterator[list[str] | str]:
    """Yields the cells of each record, or the line itself where it leaves a quote open.

    Blank lines are passed over.

    Args:
        file: Lines with their ends, as of a file that is open with newline="".
        is_row: Whether the cells of a line look like a row of their own, so that a cell that goes
            over it was not meant to. A caption of several lines that has such a line is taken for
            an open quote.

    Raises:
        csv.Error: If a line is no CSV, or a cell is longer than csv.field_size_limit().
    """
    lines = _Lines(file)
    strict = csv.reader(lines, strict=True)
    while True:
        lines.taken = []
        try:
            cells = next(strict)
            is_open = _goes_over_rows(lines.taken, is_row)
        except StopIteration:
            return
        except csv.Error:  # ends inside of quotes, or goes on after them
            is_open = len(lines.taken) > 1 or _is_left_open(lines.taken[0])
            cells = [] if is_open else next(_lenient(lines.taken))
        if is_open:
            lines.give_back(lines.taken[1:])
            yield lines.taken[0]
        elif cells:
            yield cells


def _goes_over_rows(lines: list[str], is_row) -> bool:
    """Whether the cell that goes from the first line to the last has a row within."""
    if len(lines) == 1:
        return False
    *inner, last = _lenient([*lines[1:-1], lines[-1].partition('"')[0]])
    # what comes after the closing quote is no part of that cell
    rest = len(next(_lenient(lines[-1:]))) - len(last)
    return any(map(is_row, [*inner, last + [""] * rest]))


def _lenient(lines: list[str]) -> Iterator[list[str]]:
    """The cells of each line alone; what follows a closing quote belongs to the cell."""
    return (next(csv.reader([line]), []) for line in lines)


def _is_left_open(line: str) -> bool:
    """Whether a last line ends inside of quotes."""
    try:
        next(csv.reader([line, "\n"], strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False
