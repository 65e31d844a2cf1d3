"""Leads a run of several starts: who takes part, when one is over, whether another comes."""

import dataclasses
import math
import signal
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from vidgen.launching import address
from vidgen.launching import ended as ended_lib
from vidgen.launching.ended import Ended
from vidgen.launching.records import Records
from vidgen.launching.rendezvous import Machine, Rendezvous
from vidgen.launching.terminal import say
from vidgen.process import exit_codes

GRACE_SECONDS = 12.0  # for the other processes to end, once one has told them why it ends
KILLED_GRACE_SECONDS = 0.5  # once one was killed, or its machine lost: it has told them nothing
ABORT_GRACE_SECONDS = 4.0  # once JAX aborted one: for the hang of another to be found from outside
GONE_SECONDS = 20.0  # for processes to be gone after that, or their machine is lost
PORT_SECONDS = 10.0  # for a machine to name a free port
TELL_SECONDS = 15.0  # between two words of waiting
PAUSES = (0.0, 2.0, 10.0, 30.0, 60.0)  # seconds, by starts without a new checkpoint
# Nothing is left to do, or starting again does the same again.
FINAL = (exit_codes.DONE, exit_codes.USAGE, exit_codes.REQUEUE)
FINAL += (exit_codes.NUMBERS, exit_codes.REFUSED)


class _Over(Exception):
    """The run is over, with an exit code and its reason."""

    def __init__(self, code: int, text: str = ""):
        super().__init__(text)
        self.code, self.text = code, text


class Leader:
    """Leads a run.

    Args:
        rendezvous: The machines.
        records: The account of the run.
        machines: How many a start needs; what comes beside them is spare.
        give_up_after: Starts in a row that save nothing new.
        wait_seconds: For machines that are missing.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        records: Records,
        *,
        machines: int,
        give_up_after: int,
        wait_seconds: float,
    ):
        self._rendezvous, self._records = rendezvous, records
        self._wanted, self._give_up_after = machines, give_up_after
        self._wait_seconds = wait_seconds
        self._places: list[Machine] = []  # of the last start
        self._in_vain = 0
        self._has_lost = False  # a machine, in the last start
        self._is_asked = False  # to stop

    def go(self) -> None:
        """Starts until all is done, or cannot be, and tells all machines how it ended."""
        over = _Over(exit_codes.ERROR, "the supervisor that leads has failed: see its terminal.")
        try:
            number = self._records.last_number() + 1
            while True:
                self._gather(number)
                self._one_start(number)
                number += 1
        except _Over as error:
            over = error
        except Exception:  # whatever it is, the others have to hear
            say(traceback.format_exc())
        self._rendezvous.finish(over.code, over.text)

    # Before a start.

    def _gather(self, number: int) -> None:
        """Waits for the pause before a start to pass, and for enough machines."""
        begin = told = time.monotonic()
        pause = PAUSES[min(self._in_vain, len(PAUSES) - 1)]
        bad = self._records.bad_hosts(number)
        while True:
            self._turn()
            if self._is_asked:
                self._over(exit_codes.REQUEUE, "asked to stop.")
            now, there = time.monotonic(), self._rendezvous.machines
            chosen = choose(self._places, there, self._wanted, bad)
            if now - begin >= pause and chosen and self._has_port(chosen[0]):
                self._tell_bad(chosen, bad)
                self._places = chosen
                return
            if now - begin > pause + self._wait_seconds and not chosen:
                text = f"{self._missing()} Waited {self._wait_seconds:g} s (--wait_seconds)."
                self._over(exit_codes.ERROR, text)
            if now - told > TELL_SECONDS and not chosen:
                told = now
                say(f"{self._missing()} Waiting for {self._wait_seconds:g} s at most.")

    def _has_port(self, machine: Machine) -> bool:
        """Asks the machine of process 0 for a free port, and waits for the answer."""
        machine.port = 0
        machine.channel.send("prepare")
        until = time.monotonic() + PORT_SECONDS
        while not machine.port and not machine.channel.closed:
            if time.monotonic() > until:
                self._rendezvous.drop(machine, f"it named no free port in {PORT_SECONDS:g} s")
            self._turn()
        return bool(machine.port) and machine in self._rendezvous.machines

    def _tell_bad(self, chosen: Sequence[Machine], bad: set[str]) -> None:
        used = {machine.host for machine in chosen}
        for host in sorted(bad):
            if host in used and self._wanted > 1:
                say(f"{host} has failed often (launch/hosts.jsonl), and no spare is there: used.")
            elif any(host == machine.host for machine in self._rendezvous.machines):
                say(f"{host} has failed often (launch/hosts.jsonl): set aside for a spare.")

    def _missing(self) -> str:
        there = [machine.host for machine in self._rendezvous.machines]
        text = f"{len(set(there))} of {self._wanted} machines are there ({', '.join(there)})."
        if gone := [machine.host for machine in self._places if machine.host not in there]:
            return f"{text} Missing: {', '.join(gone)}. Start the same command there, or on others."
        if len(set(there)) < len(there):
            text += " Some have the same name: VIDGEN_LAUNCH_HOST gives one to each."
        return f"{text} Start the same command on the others, with the same --meet."

    # A start.

    def _one_start(self, number: int) -> None:
        """One start, and what follows from it. Raises _Over where none is to come."""
        begin, clock, before = time.time(), time.monotonic(), self._records.saved()
        self._rendezvous.ends.clear()
        self._begin(number)
        ends = self._watch()
        ended = ended_lib.first(ends) if ends else Ended(exit_codes.DONE)
        saved = self._records.saved()
        has_gained, newest = bool(saved - before), max(saved, default=None)
        self._in_vain = 0 if has_gained else self._in_vain + 1
        line: dict[str, Any] = {"start": number, "time": begin}
        line |= {"seconds": time.monotonic() - clock, "newest_checkpoint": newest}
        line |= {**dataclasses.asdict(ended), "machines": [m.host for m in self._places]}
        line["ends"] = [[end.process, end.host, end.code] for end in ends]
        self._records.add_start(line)
        self._judge(number, ended, has_gained, newest)

    def _begin(self, number: int) -> None:
        total, first = sum(machine.processes for machine in self._places), 0
        coordinator = address.join(self._places[0].address, self._places[0].port)
        for machine in self._places:
            machine.start(number, first, total, coordinator)
            first += machine.processes

    def _watch(self) -> list[Ended]:
        """Until no process is left; returns the failures in the order of their arrival."""
        deadline, told = math.inf, {}
        while running := [machine for machine in self._places if machine.is_running]:
            self._turn()
            ends, now = self._rendezvous.ends, time.monotonic()
            if ends:
                deadline = min(deadline, now + min(map(_grace, ends)))
            if any(machine.signals > 1 for machine in self._rendezvous.machines):
                deadline = min(deadline, now)
            if deadline == math.inf:
                continue
            # Process 0 goes last: by it the others find each other.
            others = [machine for machine in running if machine is not self._places[0]]
            for machine in others or running:
                if machine not in told:
                    told[machine] = max(now, deadline)
                    machine.channel.send("end", seconds=max(0.0, deadline - now))
                elif now > told[machine] + GONE_SECONDS:
                    self._rendezvous.drop(machine, "its processes cannot be ended")
        if told and not self._rendezvous.ends:
            said = "ended at once, by a second signal"
            return [Ended(exit_codes.REQUEUE, 0, self._places[0].host, said)]
        return list(self._rendezvous.ends)

    def _judge(self, number: int, ended: Ended, has_gained: bool, newest: int | None) -> None:
        """Says how a start ended. Raises _Over where no other comes."""
        if ended.code == exit_codes.DONE:
            raise _Over(ended.code)
        stack = f"\nIts stack: {ended.stack}" if ended.stack else ""
        say(f"start {number}: {ended}. Its last lines:\n{ended.last_lines}{stack}")
        # What a lost machine leaves behind may hold the folder for a while.
        may_pass = ended.code == exit_codes.REFUSED and self._has_lost
        self._has_lost = bool(ended.lost)
        if ended.code in FINAL and not may_pass:
            raise _Over(ended.code, str(ended))
        if self._is_asked:
            self._over(exit_codes.REQUEUE, "asked to stop.")
        if ended.code != exit_codes.REWIND:  # which is no machine's fault
            self._records.add_host(ended, number, has_gained)
        if self._in_vain >= self._give_up_after:
            code = ended.code if ended.code > 0 else exit_codes.ERROR
            self._over(
                code,
                f"{self._in_vain} starts in a row have saved nothing new (newest checkpoint: "
                f"{'none' if newest is None else newest}): giving up. Logs are in "
                f"{self._records.folder}, stacks in {self._records.workdir}/stacks; once more "
                "starts again.",
            )
        seconds = PAUSES[min(self._in_vain, len(PAUSES) - 1)]
        place = "the beginning" if newest is None else f"checkpoint {newest}"
        say(f"starting again in {seconds:g} s, from {place}.")

    def _over(self, code: int, text: str) -> NoReturn:
        say(text)
        raise _Over(code, text)

    def _turn(self) -> None:
        """Hears the machines; a spare that is asked to stop leaves, another one stops the run.

        So does this machine where it is spare: the run cannot go on without it.
        """
        self._rendezvous.turn()
        for machine in [machine for machine in self._rendezvous.machines if machine.signals]:
            is_spare = bool(self._places) and machine not in self._places
            if is_spare and machine is not self._rendezvous.own:
                machine.channel.send("finish", code=exit_codes.REQUEUE, text="asked to stop.")
                machine.signals = 0
            elif not self._is_asked:
                self._is_asked = True
                for other in self._places if is_spare else ():
                    other.channel.send("signal", number=signal.SIGTERM)


def _grace(ended: Ended) -> float:
    """How long the other processes have, to end by themselves and to tell what they know."""
    if ended.was_told:
        return GRACE_SECONDS
    is_abort = ended.code == -signal.SIGABRT
    return ABORT_GRACE_SECONDS if is_abort else KILLED_GRACE_SECONDS


def choose(
    before: Sequence[Machine], there: Sequence[Machine], wanted: int, bad: set[str]
) -> list[Machine] | None:
    """Which machines take part in a start, by place; None where too few are there.

    Who had a place keeps it, and who comes back gets it again. A bad host, and what is on it, takes
    part where nobody else is there. Of several supervisors of one host only one takes part.

    Args:
        before: The machines of the start before; empty for the first.
        there: Those that are there, in the order of their coming.
        wanted: How many it takes.
        bad: Hosts that are to be set aside.
    """
    order = sorted(there, key=lambda machine: (machine.host in bad, machine not in before))
    hosts: dict[str, Machine] = {}
    for machine in order:
        hosts.setdefault(machine.host, machine)
    taking = list(hosts.values())[:wanted]
    if len(taking) < wanted:
        return None
    places: list[Machine | None] = [None] * wanted
    for place, old in enumerate(before):
        places[place] = next((machine for machine in taking if machine.host == old.host), None)
    rest = iter([machine for machine in taking if machine not in places])
    return [machine or next(rest) for machine in places]
