"""A working folder belongs to one run: one config and one data set."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import traverse_util

from vidgen.weights import digests


class RefusedError(ValueError):
    """The working folder belongs to another run."""

    exit_code = 80  # runtime.EXIT_CONFIG


def guard(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    fingerprint: str | None,
    may_change: Iterable[str] = (),
    contents: Mapping[str, str] = {},
) -> list[tuple[str, Any, Any]]:
    """Makes a working folder belong to one run, or refuses it.

    The first start writes `run.json`; later starts compare with it.

    Args:
        workdir: The working folder; made if there is none.
        config: The resolved config, nested.
        fingerprint: The loader's, or None for a run without data.
        may_change: Fields that another start may set anew, such as "num_steps"; a name covers the
            fields under it.
        contents: Fingerprints of what the run only uses, by name; a name that one start has and the
            other has not is not compared.

    Returns:
        (field, value before, value now) of what was set anew.

    Raises:
        RefusedError: If the folder holds a data set, or belongs to another run, with each field
            that differs.
    """
    config = json.loads(json.dumps(getattr(config, "to_dict", lambda: config)(), default=str))
    path = pathlib.Path(workdir) / "run.json"
    if path.with_name("meta.json").exists():
        raise RefusedError(
            f"{workdir} holds a data set (meta.json): give another workdir, where the run keeps "
            "its own files."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"config": config, "fingerprint": fingerprint, "contents": dict(contents)}
    anew: list[tuple[str, Any, Any]] = []
    if path.exists():
        try:
            there = json.loads(path.read_text())
            old, new = (traverse_util.flatten_dict(c, sep=".") for c in (there["config"], config))
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(
                f"{path} is not readable ({error}): it should say which run {workdir} belongs to. "
                "Restore it, or use another workdir."
            ) from error
        allowed = tuple(may_change)
        differ = [
            name
            for name in sorted(old.keys() | new.keys())
            if old.get(name, ...) != new.get(name, ...)
            and (name in old or new[name])  # a later version's field, left empty, changes nothing
        ]
        is_free = lambda name: any(name == f or name.startswith(f + ".") for f in allowed)
        anew = [(name, old.get(name), new.get(name)) for name in differ if is_free(name)]
        changed = [
            f"  {name}: {_shown(old, name)} there, {_shown(new, name)} here"
            for name in differ
            if not is_free(name)
        ]
        if changed:
            free = f" Only these may change: {', '.join(allowed)}." if allowed else ""
            raise RefusedError(
                f"{workdir} belongs to a run with another config:\n" + "\n".join(changed) + "\n"
                f"Set these fields as they were, or start a new run in another workdir.{free}"
            )
        if there["fingerprint"] != fingerprint:
            raise RefusedError(
                f"{workdir} belongs to a run on other data (fingerprint {there['fingerprint']} "
                f"there, {fingerprint} here), so its position would mean other clips. Give the "
                "data set that the run began with, or start a new run in another workdir. Of a "
                "data set that has grown, data.path=FOLDER@1 is what its first run made."
            )
        before = there.get("contents", {})
        other = [name for name in contents if before.get(name, contents[name]) != contents[name]]
        if other:
            raise RefusedError(
                f"{workdir} belongs to a run with other weights of {' and '.join(other)}: give "
                "those that the run began with (where they lie may change), or start a new run in "
                "another workdir."
            )
        run["contents"] = {**before, **contents}
        if there == run:
            return anew
    if jax.process_index() == 0:
        digests.write_atomically(path, (json.dumps(run, indent=1) + "\n").encode())
    return anew


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"
