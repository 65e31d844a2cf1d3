"""What the processes of a run tell each other past the devices: facts to agree on, and an end.

All goes through the service by which JAX's processes find each other, so it works where devices
are stuck. Its client is private to JAX and used in this file alone. Every wait has a limit.

A process that ends with an error says so first. The others hear it within a second and end with
the same code, instead of waiting in a barrier or a collective for one that is gone.
"""

import atexit
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed

from vidgen.process import exit_codes

WAIT_SECONDS = 300.0  # for all processes to come to the same point
POLL_SECONDS = 0.5  # how often a process listens
FAREWELL_SECONDS = 3.0  # how long one that ends waits for the others to hear of it

_END, _HEARD, _LEFT = "vidgen/end", "vidgen/heard", "vidgen/left"
_calls: collections.Counter[str] = collections.Counter()  # of `gather`, by name
_hosts: list[str] = []
_left = threading.Event()
_ending = threading.Lock()
_before_end: list[Callable[["End"], None]] = []


class DisagreementError(ValueError):
    """The processes of a run were started differently."""

    exit_code = exit_codes.REFUSED


class MissingError(RuntimeError):
    """Some processes did not come to where the others are."""


@dataclasses.dataclass(frozen=True)
class End:
    """Why a run ends: the process that said so first, its exit code and its reason."""

    process: int
    host: str
    code: int
    reason: str

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host} ended the run with {self.code}: {self.reason}"
        )


def count() -> int:
    """How many processes the run has."""
    return distributed.global_state.num_processes if _client() else 1


def index() -> int:
    """The number of this process, from 0."""
    return distributed.global_state.process_id if _client() else 0


def name(process: int) -> str:
    """A process in words, with its host."""
    return f"process {process} on {_hosts[process]}" if _hosts else f"process {process}"


def join(wait_seconds: float = WAIT_SECONDS) -> None:
    """Begins to listen; comes once, when JAX's processes have found each other."""
    _hosts[:] = gather("hosts", socket.gethostname(), wait_seconds)
    atexit.register(_left.set)  # before JAX's own, which closes the client
    threading.Thread(target=_listen, name="ranks", daemon=True).start()


def before_end(act: Callable[[End], None]) -> None:
    """Has `act` called, with the reason, before this process ends by an error, its own or not."""
    _before_end.append(act)


def ended(end: End) -> None:
    """Does what is to be done before an end; see `before_end`."""
    for act in _before_end:
        act(end)


def gather(what: str, value: str, seconds: float = WAIT_SECONDS) -> list[str]:
    """Every process's `value`, in their order. All processes call it alike.

    Raises:
        MissingError: If some have not called it after so many seconds; names them.
    """
    client = _client()
    if client is None:
        return [value]
    number = _calls[what]
    place = f"vidgen/{what}/{number}"
    _calls[what] += 1
    client.key_value_set(f"{place}/{index()}", value)
    try:
        client.wait_at_barrier(place, int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        missing = sorted(set(range(count())) - set(_found(place)))
        if not missing:
            raise
        raise MissingError(
            f"{', '.join(map(name, missing))} did not come to {what!r} within {seconds:g} s: look "
            "at their logs. The others cannot go on without them."
        ) from error
    found = _found(place)
    if number:  # all have read the values before, as they have come here
        client.key_value_delete(f"vidgen/{what}/{number - 1}/{index()}")
    return [found[process] for process in range(count())]


def meet(place: str, seconds: float = WAIT_SECONDS) -> None:
    """Waits until all processes have come to a place, whose name serves once.

    Raises:
        jax.errors.JaxRuntimeError: If they have not after so many seconds; names those that are
            missing.
    """
    if (client := _client()) is not None:
        client.wait_at_barrier(place, int(1000 * seconds))


def agree(facts: Mapping[str, Any], seconds: float = WAIT_SECONDS) -> None:
    """Refuses a run whose processes were started with different facts; all of them refuse alike.

    Args:
        facts: Values by name, as JSON.
        seconds: How long to wait for the others.

    Raises:
        DisagreementError: With each fact that differs, and who has which value.
        MissingError: If some processes do not come.
    """
    found = [json.loads(text) for text in gather("facts", json.dumps(facts), seconds)]
    lines = []
    for fact in dict.fromkeys(itertools.chain(*found)):
        who: dict[str, list[int]] = {}
        for process, theirs in enumerate(found):
            value = json.dumps(theirs[fact]) if fact in theirs else "absent"
            who.setdefault(value, []).append(process)
        if len(who) > 1:
            parts = [f"{value} on {_several(processes)}" for value, processes in who.items()]
            lines.append(f"  {fact}: {'; '.join(parts)}")
    if lines:
        shown = lines[:40] + [f"  and {len(lines) - 40} more"] * (len(lines) > 40)
        raise DisagreementError(
            "The processes of this run were started differently:\n"
            + "\n".join(shown)
            + "\nStart all of them with the same command, code, data and environment."
        )


def finish() -> None:
    """Waits until all have done their work, so that no end is taken for a failure."""
    with contextlib.suppress(MissingError, jax.errors.JaxRuntimeError):
        gather("finish", "")


def farewell(code: int, reason: str) -> End:
    """Tells the others that this process is about to end; `leave` comes last.

    Args:
        code: The exit code. An unexpected error and a hang may follow from another process that is
            gone or stuck: those that do not answer are then named in the reason.
        reason: Why, in a line.

    Returns:
        The end of the run: of this process, or of another that said so before.
    """
    _ending.acquire()  # for good: a process ends once
    client, me = _client(), index()
    end = End(me, _hosts[me] if _hosts else "this host", code, reason)
    if client is None:
        return end
    try:
        client.key_value_set(_END, json.dumps(dataclasses.asdict(end)))
        client.key_value_set(f"{_HEARD}/{me}", "")
    except jax.errors.JaxRuntimeError:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return _hear(client)
        gone = f"{name(0)}, by which the processes find each other, does not answer; "
        return dataclasses.replace(end, reason=gone + reason)
    may_follow = code in (exit_codes.ERROR, exit_codes.HANG)
    if may_follow and (silent := _wait_for_others(_HEARD, FAREWELL_SECONDS)):
        said = f"{', '.join(map(name, silent))} {'does' if len(silent) == 1 else 'do'} not answer: "
        said += "killed, stuck, or its machine is gone; look at its log. "
        end = dataclasses.replace(end, reason=said + reason)
    return end


def leave(code: int) -> NoReturn:
    """Ends this process at once; the first one, which holds the service, waits for the others."""
    if _client() is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_LEFT}/{index()}", "", allow_overwrite=True)
        if index() == 0:
            _see_off()
    os._exit(code)


def _see_off() -> None:
    """Waits until all that have heard of the end are gone; for others not for long.

    One that has heard may itself be waiting, in `farewell`, for those that do not answer; JAX would
    abort it if its service went first.
    """
    begin = time.monotonic()
    others = set(range(count())) - {0}
    while not others <= (left := set(_found(_LEFT))):
        awaited = others & set(_found(_HEARD))
        seconds = time.monotonic() - begin
        if seconds > 2 * FAREWELL_SECONDS or (seconds > 1 and awaited <= left):
            break
        time.sleep(POLL_SECONDS / 10)


def _hear(client) -> End:
    """Reads who ended the run, and says that it was heard."""
    end = End(**json.loads(client.key_value_try_get(_END)))
    client.key_value_set(f"{_HEARD}/{index()}", "", allow_overwrite=True)
    return end


def _wait_for_others(place: str, seconds: float) -> list[int]:
    """Waits until all others have come to a place; returns those that have not."""
    until = time.monotonic() + seconds
    while silent := sorted(set(range(count())) - {index()} - set(_found(place))):
        if time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS / 10)
    return silent


def _listen() -> None:
    client = _client()
    while not _left.wait(POLL_SECONDS):
        try:
            client.key_value_try_get(_END)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the service is gone: JAX ends this process
        _ending.acquire()
        try:
            end = _hear(client)
        except jax.errors.JaxRuntimeError:  # the service went meanwhile
            _ending.release()
            return
        ended(end)
        with contextlib.suppress(OSError):
            os.write(2, f"{end}\n".encode())
        leave(end.code)


def _client():
    return distributed.global_state.client


def _found(place: str) -> dict[int, str]:
    """What stands under a place of the service, by process."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        pairs = _client().key_value_dir_get(place)
        return {int(key.rsplit("/", 1)[1]): value for key, value in pairs}
    return {}


def _several(processes: Sequence[int]) -> str:
    shown = ", ".join(map(name, processes[:4]))
    return shown + (f" and {len(processes) - 4} more" if len(processes) > 4 else "")
