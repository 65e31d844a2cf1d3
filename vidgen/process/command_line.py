"""Commands with a config: flags in, clear messages out."""

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from data_pipelines.process import outputs
from vidgen.process import field_limits

EXIT_USAGE = 2
OF_A_RUN = ("num_steps", "model", "optim")  # fields of the config of any run


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command whose flags are defined; ends with what `main` returns.

    What is wrong with the command line ends it with EXIT_USAGE and one message: a flag or config
    field that does not exist, a word that belongs to no flag, a value that no run can have, a place
    where nothing can be written.
    """
    app.run(main, flags_parser=_parse_and_hush)


def writes_folder(name: str) -> None:
    """Says that a flag names a folder to write, which is checked before the command begins."""
    _checked(name, outputs.check_folder)


def writes_file(name: str) -> None:
    """Says that a flag names a file to write, which is checked before the command begins."""
    _checked(name, outputs.check_file)


def _checked(name: str, check: Callable[[str, str], None]) -> None:
    def fits(value: str | None) -> bool:
        try:
            if value:
                check(value, f"--{name}")
        except ValueError as error:
            raise flags.ValidationError(str(error)) from error
        return True

    flags.register_validator(name, fits)


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
        message = _unreadable_config(argv, values)
        if not message:
            rest = values(argv)
            message = _stray(rest[1:]) if rest[1:] else "\n".join(_wrong_values(values))
        if not message:
            return rest
    except SystemExit as error:  # the help flags end with 1
        raise SystemExit(0) from error
    except flags.Error as error:
        message = str(error)
    except Exception as error:  # ml_collections raises whatever a field makes of its value
        message = unknown_fields(argv, values) or f"the config cannot be set so: {error}"
    _refuse(argv, message)


def _refuse(argv: Sequence[str], message: str) -> NoReturn:
    missing = r"flag --(\w+)=None: Flag --\1 must have a value other than None\."
    message = re.sub(missing, r"--\1 is missing: give --\1=VALUE; --help says more.", message)
    message = re.sub(r"flag --(\w+)=.*?: (--\1=)", r"\2", message)  # of a check of ours
    message = re.sub(r"invalid literal for int.*: ('.*')", r"\1 is no whole number", message)
    message = re.sub(r"could not convert string to float: ('.*')", r"\1 is no number", message)
    if message.startswith("Unknown command line flag") and "Did you mean" not in message:
        message += "; --help names all flags"
    sys.stderr.write(f"{os.path.basename(argv[0])}: {message}\n")
    raise SystemExit(EXIT_USAGE)


def _stray(words: Sequence[str]) -> str:
    """What is said of words that belong to no flag."""
    hint = " Quote a text of several words." if len(words) > 1 else ""
    if configs := [word for word in words if word.partition(":")[0].endswith(".py")]:
        hint = f" Did you mean --config={configs[0]}?"
    return f"{' '.join(words)!r} belongs to no flag: write --name=value.{hint}"


def _unreadable_config(argv: Sequence[str], values: flags.FlagValues) -> str:
    """Says why a config file cannot be used, or ""; it is a program of the user's."""
    for name in _config_flags(values):
        chosen = _given(argv, name)
        chosen = values[name].default if chosen is None else chosen
        if chosen is None:
            continue
        file = chosen.partition(":")[0]
        if not os.path.isfile(file) or not file.endswith(".py"):
            return (
                f"--{name}={chosen}: there is no Python file {os.path.abspath(file)}: give one "
                "such as configs/tiny.py."
            )
        try:
            config = values[name].parser.parse(chosen)
            if not isinstance(config, ConfigDict):
                raise TypeError(f"get_config gives {type(config).__name__}, and no ConfigDict")
            if missing := [field for field in OF_A_RUN if field not in config]:
                raise TypeError(f"it has no {' and no '.join(missing)}, as the config of a run has")
        except Exception as error:
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {cause}"
            if "Traceback" in reason:  # which ml_collections puts into its message
                reason = reason.strip().splitlines()[-1]
            return (
                f"--{name}={chosen} cannot be used ({reason}): mend it, or give a file such as "
                "configs/tiny.py."
            )
    return ""


def _wrong_values(values: flags.FlagValues) -> list[str]:
    """What no command can do anything with: empty texts, and numbers that are none."""
    found = []
    for name in values:
        flag = values[name]
        if "." in name:  # a field of a config, which is looked at below
            continue
        if flag.present and flag.value == "" and flag.default != "":
            found.append(f"--{name} is empty: give it a value, or leave it out.")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            found.append(f"--{name}={flag.value} does not fit: give a finite number.")
    for name in _config_flags(values):
        if values[name].value is not None:
            found += field_limits.problems(dotted(values[name].value.to_dict()))
    return found


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
