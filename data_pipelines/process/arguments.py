"""Flags of the data commands: given in full, checked at once, and refused in one message."""

import argparse
import contextlib
import difflib
import math
import sys
from collections.abc import Callable, Iterator

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations, and no flag without its value.

    Args:
        command: The module, as `python -m` takes it.
        description: What --help says above the flags.
    """

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=command,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args=None, namespace=None):
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self.unknown(rest[0]))
        return found

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for word in args:  # before a flag is missed that was only misspelled
            flag = word.partition("=")[0]
            known = flag in self._option_string_actions or "." in flag  # --config.FIELD
            if flag.startswith("--") and flag != "--" and not known:
                self.error(self.unknown(word))
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]) and action.default != "":
                name = action.option_strings[-1] if action.option_strings else action.dest
                self.error(f"{name} is empty: give it a value")
        return found, rest

    def unknown(self, word: str) -> str:
        """What to say of a word of the command line that nothing takes."""
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            return f"{word!r} belongs to no flag: write --NAME=VALUE, with quotes around spaces"
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
        return f"there is no flag {flag}" + (f"; did you mean {near[0]}?" if near else "")

    def error(self, message: str):
        end = "" if message.endswith("?") else "."
        self.exit(EXIT_USAGE, f"error: {message}{end} --help names all flags.\n")

    @contextlib.contextmanager
    def refusing(self, *errors: type[Exception]) -> Iterator[None]:
        """Ends the command with one message where its input is refused; `errors` do so too."""
        try:
            yield
        except (ValueError, OSError, ImportError, *errors) as error:
            message = str(error)
            if isinstance(error, OSError) and error.filename is not None:
                message = f"{error.filename}: {error.strerror}."
            self.exit(EXIT_USAGE, f"error: {message}\n")


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
    """The type of a flag that is a number from `low` on, and finite."""
    return _number(kind, lambda value: value >= low, f"{low} or more")


def positive(text: str) -> float:
    """The type of a flag that is a finite number above 0."""
    return _number(float, lambda value: value > 0, "a number above 0")(text)


def _number(kind: type, fits: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (fits(value) and math.isfinite(value)):
            what = "whole numbers, " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} does not fit: it takes {what}{wanted}")
        return value

    return read
