"""The config of a run: read with its overrides, checked before any work, and handed to workers.

Workers, also those on other machines, read it as plain values from `plan.json` in the work folder.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

import configs.data
from data_pipelines.media import video_io
from data_pipelines.stages import examine, rules, text

VERSION = 3  # of what is measured: raise it when equal files give other rows
_CHILD_ONLY = ("deadline_seconds", "memory_bytes")  # limits that `video_io.Limits` does not have
_LEAST_MEMORY = 128 << 20  # bytes of a child process that decodes small files


def load(path: str | None, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a config file ("configs/data.py", or "FILE.py:argument") and sets fields by name.

    Args:
        path: None: the defaults of `configs.data.base`.
        overrides: ("dedup.near", "4") and the like, values as written on the command line.

    Raises:
        ValueError: If the file or a field is not there, or a value is of the wrong type.
    """
    config = configs.data.base() if path is None else read_file(path)
    problems = _differences(configs.data.base(), config)
    if problems:
        more = f"; and {len(problems) - 3} more" * (len(problems) > 3)
        raise ValueError(
            f"--config={path} does not fit data_pipelines.pipeline: {'; '.join(problems[:3])}{more}"
            ": give one such as configs/data.py."
        )
    fields = _leaves(config)
    for name, written in overrides:
        if name not in fields:
            raise ValueError(f"the config has no field {_suggest(name, fields)}")
        group, _, leaf = name.rpartition(".")
        target = _group(config, group)
        try:
            target[leaf] = _value(written, target.get_type(leaf))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            kind = target.get_type(leaf).__name__
            raise ValueError(f"--config.{name}={written!r} is no {kind}.") from error
    return config


def check(config: ConfigDict, said: Iterable[str] = ()) -> dict[str, Any]:
    """Checks a config before any work, and returns it as plain values.

    Args:
        config: Fields of `configs.data.base`.
        said: Names in the `given` of the source's clips.

    Raises:
        ValueError: If a value makes no sense, a rule cannot be read, or asks for what is not
            measured.
        ImportError: If a package for what is asked is missing.
    """
    plain = json.loads(json.dumps(config.to_dict()))
    measured = set(examine_options(plain).scores)
    models = config.models
    for name, path in (
        ("clip", models.clip),
        ("aesthetic", models.aesthetic),
        ("text", models.text),
    ):
        if path and not os.path.exists(path):
            raise ValueError(f"models.{name}={path} does not exist.")
    if models.aesthetic and not models.clip:
        raise ValueError("models.aesthetic needs models.clip, the model that it was made for.")
    if config.endpoint.url and not config.endpoint.model:
        raise ValueError("endpoint.url needs endpoint.model, a name that its /models lists.")
    measured |= {"match"} if models.clip else set()
    measured |= {"aesthetic"} if models.aesthetic else set()
    measured |= {"text_share"} if models.text else set()
    for rule in rules.parse(config.rules, set(said)):
        for name in rule.names:
            switch = {"match": "models.clip", "aesthetic": "models.aesthetic"}
            switch |= {"text_share": "models.text"}
            if name in (*configs.data.SCORES, *switch) and name not in measured:
                where = switch.get(name, "scores")
                raise ValueError(f"rule {rule.text!r}: {name} is not measured: set {where}.")
    if config.dedup.near >= 0 and "phash" not in measured:
        raise ValueError(f"dedup.near={config.dedup.near} compares phash: name it in scores.")
    if not -1 <= config.dedup.near <= 32:
        raise ValueError(f"dedup.near={config.dedup.near}: give 0 to 32 bits, or -1 for none.")
    _check_numbers(config)
    _check_captions(config.captions, measured)
    return plain


def _check_numbers(config: ConfigDict):
    stills = config.models.clip or config.models.text or config.endpoint.url
    least = {f"limits.{name}": 1 for name in config.limits}
    least |= {"limits.max_uneven": 0, "limits.memory_bytes": _LEAST_MEMORY}
    least |= {"models.num_stills": 1 if stills else 0, "cuts.min_seconds": 0}
    least |= {"endpoint.parallel": 1, "endpoint.timeout": 1}
    least |= {"shards.bytes": 1, "shards.short_side": 0, "shards.crf": 0}
    for name, bound in least.items():
        group, leaf = name.split(".")
        if not config[group][leaf] >= bound:  # no number either
            raise ValueError(f"{name}={config[group][leaf]}: give {bound} or more.")
    if config.shards.crf > 51:
        raise ValueError(f"shards.crf={config.shards.crf}: give 0 (best) to 51.")


def _check_captions(captions: ConfigDict, measured: set[str]):
    """What captions tell has to be measured, and what they pass to be installed."""
    if captions.add_camera and "camera" not in measured:
        raise ValueError("captions.add_camera tells camera, which is not measured: set scores.")
    if captions.add_scores and not measured & {*text.SCORE_NAMES}:
        raise ValueError(
            f"captions.add_scores tells {' and '.join(text.SCORE_NAMES)}, neither of which is "
            "measured: set scores or models.aesthetic."
        )
    if captions.english:
        text.lingua()


def examine_options(plain: dict) -> examine.Options:
    """Returns what is measured in a file's pixels."""
    models, cuts = plain["models"], plain["cuts"]
    stills = models["clip"] or models["text"] or plain["endpoint"]["url"]
    return examine.Options(
        limits=limits(plain),
        cuts=cuts["enabled"],
        cut_threshold=cuts["threshold"],
        min_seconds=cuts["min_seconds"],
        max_seconds=cuts["max_seconds"],
        split_long=cuts["split_long"],
        scores=tuple(plain["scores"]),
        num_stills=models["num_stills"] if stills else 0,
    )


def limits(plain: dict) -> video_io.Limits:
    return video_io.Limits(**{k: v for k, v in plain["limits"].items() if k not in _CHILD_ONLY})


def measurement(plain: dict) -> dict[str, Any]:
    """Returns how clips are measured: all that the numbers depend on but the clip itself.

    Returns:
        `version`, `limits`, `cuts` (None: no scenes), `scores`, `models` (a digest; empty: none is
        asked), `reads` and `writes`: whether a model reads the caption, and an endpoint writes it.
    """
    names = ("models", "endpoint") if examine_options(plain).num_stills else ()
    return {
        "version": VERSION,
        "limits": plain["limits"],
        "cuts": plain["cuts"] if plain["cuts"]["enabled"] else None,
        "scores": sorted(plain["scores"]),
        "models": digest(*map(plain.get, names)) if names else "",
        "reads": bool(plain["models"]["clip"]),
        "writes": bool(plain["endpoint"]["url"]),
    }


def early_rules(plain: dict) -> list[rules.Rule]:
    """Returns the rules that clips have to pass before models see them."""
    return [rule for rule in rules.parse(plain["rules"]) if not rule.is_late()]


def digest(*values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_file(path: str) -> ConfigDict:
    """Reads a config file, "FILE.py" or "FILE.py:argument".

    Raises:
        ValueError: If there is none, or it does not give a config, whatever goes wrong in it.
    """
    file, _, argument = path.partition(":")
    if not os.path.isfile(file) or not file.endswith(".py"):
        raise ValueError(
            f"--config={path}: there is no Python file {os.path.abspath(file)}: give one with a "
            "get_config, such as configs/data.py."
        )
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config gives {type(config).__name__}, and no ConfigDict")
        return config
    except Exception as error:  # it is a program of the user's
        raise ValueError(
            f"--config={path} cannot be read ({type(error).__name__}: {error}): mend it, or give a "
            "file such as configs/data.py."
        ) from error
    finally:
        sys.path.pop(0)


def _differences(base: ConfigDict, config: ConfigDict) -> list[str]:
    wanted, found = _leaves(base), _leaves(config)
    missing, unknown = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    return [f"the field {name} is missing" for name in missing] + [
        f"there is no field {_suggest(name, wanted).rstrip('.')}" for name in unknown
    ]


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name in config:
        value = config[name]
        nested = isinstance(value, ConfigDict)
        names += _leaves(value, f"{prefix}{name}.") if nested else [prefix + name]
    return names


def _group(config: ConfigDict, name: str) -> ConfigDict:
    for part in filter(None, name.split(".")):
        config = config[part]
    return config


def _value(text: str, kind: type):
    """Reads a value as it is written on a command line."""
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is tuple:
        if text.startswith(("(", "[")):
            return tuple(ast.literal_eval(text))
        return tuple(item.strip() for item in text.split(";") if item.strip())
    if text == "None":
        return None
    return kind(float(text)) if kind is int and float(text).is_integer() else kind(text)


def _suggest(name: str, fields: Sequence[str]) -> str:
    last = {field.rsplit(".", 1)[-1]: field for field in reversed(fields)}
    near = difflib.get_close_matches(name, fields, n=2, cutoff=0.7)
    same = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.7)
    near = list(dict.fromkeys([*near, *(last[other] for other in same)]))
    meant = " or ".join(repr(field) for field in near)
    return f"{name!r}; did you mean {meant}?" if near else f"{name!r}; it has {', '.join(fields)}."
