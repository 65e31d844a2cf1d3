"""A working folder belongs to one run, and while that lives, to its processes alone."""

import dataclasses
import json
import os
import pathlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from vidgen.process import exit_codes, locks, ranks
from vidgen.training import identity as identity_lib
from vidgen.weights import digests

SHARED_SECONDS = 5.0  # for what one host wrote to be seen on another


class RefusedError(ValueError):
    """The working folder belongs to another run, or is in use."""

    exit_code = exit_codes.REFUSED


class Run:
    """The run of a working folder: compared with what is there before anything is written.

    Args:
        workdir: The working folder; need not exist.
        config: The resolved config, nested.
        fingerprint: The loader's, or None for a run without data.
        may_change: Config fields that another start may set anew, such as "num_steps"; a name
            covers the fields under it.
        accept: Names of other differences that are meant: they are taken over and written down.

    Attributes:
        id: Of the run, in all of its starts; from `lock` on the same in all processes.
        noted: What else its checkpoints keep, as JSON by name.
        restored: What the checkpoint that was checked last keeps; empty without one.

    Raises:
        RefusedError: If the folder holds a data set, or belongs to another run, with each field
            that differs.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        fingerprint: str | None,
        may_change: Iterable[str] = (),
        accept: Iterable[str] = (),
    ):
        self.folder = pathlib.Path(workdir)
        self.identity = identity_lib.Identity.of(config, fingerprint)
        self._may_change, self._accept = tuple(may_change), tuple(accept)
        self._path = self.folder / "run.json"
        self._there, self._accepted, self.id = None, [], uuid.uuid4().hex
        self._lock = None
        self.noted: dict[str, Any] = {}
        self.restored: Mapping[str, Any] = {}
        if (self.folder / "meta.json").exists():
            raise RefusedError(
                f"{workdir} holds a data set (meta.json): give another workdir, where the run "
                "keeps its own files."
            )
        self._text = self._read()
        if self._text is not None:
            try:
                found = json.loads(self._text)
                self._there = identity_lib.Identity.read(found)
                self._accepted = [tuple(entry) for entry in found.get("accepted", [])]
                self.id = str(found.get("id", self.id))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RefusedError(
                    f"{self._path} is not readable ({error}): it should say which run {workdir} "
                    "belongs to. Restore it, or use another workdir."
                ) from error
        known = [*self.identity.flat(), "weights", *(self._there.flat() if self._there else ())]
        if unknown := [
            name
            for name in self._accept
            if not name.startswith("weights.")
            and not any(identity_lib.covers([name], field) for field in known)
        ]:
            raise RefusedError(
                f"--accept={','.join(unknown)} names nothing of a run: give names as the refusal "
                "of a change shows them, such as schedule.lr, fingerprint or versions.jax."
            )
        if self._there is not None:
            self._compare(self._there, str(self.folder))

    def facts(self, per_process: Iterable[str] = ()) -> dict[str, Any]:
        """What the processes of one start must have alike, by name; see `ranks.agree`.

        Args:
            per_process: Config fields that each process may have its own way. Of those that are
                paths of weights, the content is a fact.
        """
        flat, apart = self.identity.flat(), tuple(per_process)
        facts = {name: x for name, x in flat.items() if not identity_lib.covers(apart, name)}
        for name in apart:
            if isinstance(flat.get(name), str) and (sample := digests.sample(flat[name])):
                facts[f"content of {name}"] = sample
        facts |= identity_lib.environment() | {"accept": sorted(self._accept)}
        return facts | {"devices of a process": jax.local_device_count()}

    def weights(self, contents: Mapping[str, str]) -> None:
        """Takes the fingerprints of frozen weights, by name, and compares them.

        Raises:
            RefusedError: If the run began with others.
            ranks.DisagreementError: If the processes have read different ones.
        """
        ranks.agree({f"weights.{name}": value for name, value in contents.items()})
        known = [
            f"weights.{name}" for name in (*contents, *(self._there or self.identity).contents)
        ]
        for name in self._accept:
            if name.startswith("weights.") and name not in known:
                raise RefusedError(f"--accept={name} names no weights: use {known or 'none'}.")
        self.identity = dataclasses.replace(self.identity, contents=dict(contents))
        if self._there is not None:
            self._compare(self._there, str(self.folder))
            contents = {**self._there.contents, **contents}
            self.identity = dataclasses.replace(self.identity, contents=contents)

    def check(self, meta: Mapping[str, Any], where: str | os.PathLike) -> None:
        """Compares a checkpoint with this run, by what `meta` said of the run that wrote it.

        Raises:
            RefusedError: If it is of another run.
        """
        if "identity" in meta:  # older ones say less
            there = identity_lib.Identity.read(meta["identity"])
            self._compare(there, f"the checkpoint {where}", self._accepted)
        elif meta.get("fingerprint", self.identity.fingerprint) != self.identity.fingerprint:
            there = dataclasses.replace(self.identity, fingerprint=meta["fingerprint"])
            self._compare(there, f"the checkpoint {where}")
        self.restored = meta

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps of its run."""
        return {**self.noted, "position": step, "identity": dataclasses.asdict(self.identity)}

    def lock(self) -> None:
        """Takes the folder for the processes of this run, which must all see the same folder.

        The system lets go of it when the first process ends, however it ends.

        Raises:
            RefusedError: If another run has it, or if the processes see different folders.
        """
        path, token = self.folder / "run.lock", ""
        is_new = not self.folder.exists()
        if ranks.index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            token = uuid.uuid4().hex
            try:
                self._lock = locks.take(path, "process", f"({token})")
            except locks.InUseError as error:
                raise RefusedError(
                    f"{self.folder} is in use by {str(error) or 'another run'}: wait for its end, "
                    "stop it, or give another workdir."
                ) from None
            if self._read() != self._text:
                raise RefusedError(
                    f"{self.folder} was taken by another run while this one started: start again, "
                    "or give another workdir."
                )
        token, self.id = ranks.gather("lock", f"{token} {self.id}")[0].split(" ", 1)
        try:
            ranks.agree({f"workdir {self.folder.absolute()} is shared": _sees(path, token)})
        except ranks.DisagreementError as error:
            if ranks.index() == 0 and is_new:
                path.unlink()
                self.folder.rmdir()
            raise RefusedError(
                f"{error} Here the working folder is {self.folder.absolute()}: all processes need "
                "one that they share."
            ) from error

    def keep(self) -> list[identity_lib.Difference]:
        """Writes down which run this is, for the next start.

        Returns:
            (field, value before, value now) of what was set anew.
        """
        anew = [] if self._there is None else self._there.differences(self.identity)
        anew = [(name, *(None if x is ... else x for x in values)) for name, *values in anew]
        accepted = [entry for entry in anew if not self._is_free(entry[0])]
        self._accepted += accepted
        run = {"id": self.id, **dataclasses.asdict(self.identity), "accepted": self._accepted}
        run = json.loads(json.dumps(run))
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._path.exists() or json.loads(self._path.read_text()) != run:
                digests.write_atomically(self._path, (json.dumps(run, indent=1) + "\n").encode())
            for name, there, here in accepted:
                event = {"event": "accepted", "field": name, "there": there, "here": here}
                with open(self.folder / "events.jsonl", "a") as file:
                    file.write(json.dumps(event) + "\n")
        return anew

    def _read(self) -> str | None:
        try:
            return self._path.read_text() if self._path.exists() else None
        except (OSError, ValueError) as error:
            raise RefusedError(f"{self._path} is not readable ({error}): restore it.") from error

    def _is_free(self, name: str) -> bool:
        return identity_lib.covers(self._may_change, name)

    def _compare(self, there: identity_lib.Identity, where: str, accepted: Sequence = ()) -> None:
        """Refuses differences; `accepted` are those of earlier starts that the folder knows of."""
        before = {(name, json.dumps(value)) for name, value, _ in accepted}
        changed = [
            (name, old, new)
            for name, old, new in there.differences(self.identity)
            if not self._is_free(name)
            and not identity_lib.covers(self._accept, name)
            and (name, json.dumps(None if old is ... else old)) not in before
        ]
        if not changed:
            return
        free = f" These may change freely: {', '.join(self._may_change)}." * bool(self._may_change)
        raise RefusedError(
            f"{where} belongs to another run:\n"
            + "\n".join(
                f"  {name}: {_shown(old)} there, {_shown(new)} here" for name, old, new in changed
            )
            + f"\nSet these as they were, or start a new run in another workdir.{_hints(changed)} "
            f"A change that is meant: --accept={','.join(name for name, *_ in changed)}.{free}"
        )


def _hints(changed: Sequence[identity_lib.Difference]) -> str:
    names = [name for name, *_ in changed]
    text = ""
    if "fingerprint" in names:
        text += (
            " The data are others, so the run's position would mean other clips: of a data set "
            "that has grown, data.path=FOLDER@1 is what its first run made."
        )
    if any(name.startswith("weights.") for name in names):
        text += " Of frozen weights the content counts, and not where they lie."
    return text


def _shown(value: Any) -> str:
    return "absent" if value is ... else json.dumps(value)


def _sees(path: pathlib.Path, token: str) -> bool:
    """Whether the lock's file says so here too; a network's file system may take a moment."""
    until = time.monotonic() + SHARED_SECONDS
    while True:
        try:
            if token in path.read_text():
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
