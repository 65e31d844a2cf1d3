"""Commands with a config: flags in, clear messages out."""

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

EXIT_USAGE = 2


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command whose flags are defined; ends with what `main` returns.

    A flag or config field that does not exist ends it with EXIT_USAGE and one message, which names
    the nearest one that does; so does a word that belongs to no flag.
    """
    app.run(main, flags_parser=_parse_and_hush)


def _parse_and_hush(argv: Sequence[str]) -> list[str]:
    """Libraries tell what they do at each save; that is for `--verbosity=0` only."""
    rest = parse(argv)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)
    return rest


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses a command line; see `run`.

    Returns:
        What is left: the command's name.
    """
    try:
        rest = values(argv)
        for name in _config_flags(values):
            if values[name].value is not None:
                _ = values[name].value.keys()  # a file that could not be read shows itself here
        if not rest[1:]:
            return rest
        message = _stray(rest[1:])
    except SystemExit as error:  # the help flags end with 1
        raise SystemExit(0) from error
    except (AttributeError, KeyError) as error:
        message = unknown_fields(argv, values) or str(error)
    except flags.Error as error:
        message = str(error)
    except OSError as error:
        message = str(error.__cause__ or error)
    if len(message) > 2 and message[0] == message[-1] == '"':
        message = message[1:-1]  # KeyError quotes its message
    sys.stderr.write(f"{os.path.basename(argv[0])}: {message}\n")
    raise SystemExit(EXIT_USAGE)


def _stray(words: Sequence[str]) -> str:
    """What is said of words that belong to no flag."""
    hint = " Quote a text of several words." if len(words) > 1 else ""
    if configs := [word for word in words if word.partition(":")[0].endswith(".py")]:
        hint = f" Did you mean --config={configs[0]}?"
    return f"{' '.join(words)!r} belongs to no flag: write --name=value.{hint}"


def unknown_fields(argv: Sequence[str], values: flags.FlagValues) -> str:
    """Names each `--config.field` of a command line that the config file does not have, or ""."""
    messages = []
    for name in _config_flags(values):
        chosen = _given(argv, name) or values[name].default
        if chosen is None:
            continue
        fields = dotted(values[name].parser.parse(chosen).to_dict())
        leaves = [field for field, value in fields.items() if not isinstance(value, Mapping)]
        for argument in argv[1:]:
            field = argument.lstrip("-").split("=")[0]
            if argument.startswith("-") and field.startswith(f"{name}."):
                field = field.removeprefix(f"{name}.")
                if field not in fields:
                    messages.append(f"{chosen} has no field {suggest(field, leaves)}")
    return "\n".join(messages)


def suggest(name: str, choices: Sequence[str]) -> str:
    """Says `"optim.lrr"; did you mean "optim.lr"?` with up to three near names, or else all names.

    Near is what is spelled alike, and a field of the same name elsewhere.
    """
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.7)
    last = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    same = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=2, cutoff=0.8)
    near = list(dict.fromkeys([*near, *(last[field] for field in same)]))[:3]
    meant = " or ".join(f'"{choice}"' for choice in near)
    return f'"{name}"; did you mean {meant}?' if near else f'"{name}"; it has {", ".join(choices)}.'


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields of a nested config by dotted name, groups included."""
    flat = {}
    for key, value in tree.items():
        flat[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
    return flat


def _config_flags(values: flags.FlagValues) -> list[str]:
    return [name for name in values if hasattr(type(values[name]), "config_filename")]


def _given(argv: Sequence[str], name: str) -> str | None:
    for position, argument in enumerate(argv):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == name:
            return value if equals else (list(argv) + [None])[position + 1]
    return None
