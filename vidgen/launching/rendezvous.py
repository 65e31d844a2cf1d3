"""The machines of a run, as the supervisor that leads sees them: who is there, what they say."""

import math
import secrets
import socket
import time
from collections.abc import Sequence

from vidgen.launching import channel as channel_lib
from vidgen.launching.channel import Channel
from vidgen.launching.ended import Ended
from vidgen.launching.terminal import say
from vidgen.process import exit_codes

POLL_SECONDS = 0.05
SILENT_SECONDS = 12.0  # a machine is lost: its supervisor has ended its processes before that
FAREWELL_SECONDS = 5.0  # for all to take the last message
STRANGERS = 64  # connections at a time that have not said who they are


class Machine:
    """A machine: what it said of itself, and what it does.

    Attributes:
        name: Of its supervisor, for as long as that lives.
        host: The machine's name.
        processes: How many it runs.
        address: Where others reach it.
        first: The number of its first process.
        port: A free one, once it was asked for.
        is_running: Whether processes of a start may be left there.
        signals: How many asked it to stop.
        ends: Of its processes, in their order.
    """

    def __init__(self, channel: Channel, address: str, silent_seconds: float = SILENT_SECONDS):
        self.channel, self.address, self.nonce = channel, address, secrets.token_hex(16)
        self.silent_seconds = silent_seconds
        self.begin, self.name, self.host, self.processes = time.monotonic(), "", address, 0
        self.first, self.port, self.signals = 0, 0, 0
        self.is_running = False
        channel.send("challenge", nonce=self.nonce)

    def start(self, number: int, first: int, total: int, coordinator: str) -> None:
        """Starts its processes."""
        self.first, self.is_running = first, True
        fields = {"number": number, "first": first, "total": total}
        self.channel.send("start", **fields, coordinator=coordinator)

    def fileno(self) -> int:
        return self.channel.fileno()


class Rendezvous:
    """Takes the machines in, and hears what they say.

    Args:
        token: That they have to know.
        command: That they have to run.
        listener: Where they come; None for this machine alone.
        address: Where this machine is reached.

    Attributes:
        own: This machine.
        machines: Those that are there, in the order of their coming.
        ends: Of processes and machines since the list was cleared, in the order of arrival.
    """

    def __init__(
        self,
        token: str,
        command: Sequence[str],
        listener: socket.socket | None = None,
        address: str = "127.0.0.1",
    ):
        self._token, self._command, self._listener = token, list(command), listener
        self._address = address
        self._strangers: list[Machine] = []
        self._told: set[str] = set()
        self.own: Machine | None = None
        self._is_over = False
        self.machines: list[Machine] = []
        self.ends: list[Ended] = []

    def connect(self) -> socket.socket:
        """A connection for the supervisor of this machine; others are let in once it is there."""
        ours, theirs = socket.socketpair()
        self.own = Machine(Channel(ours), self._address, math.inf)
        self._strangers.append(self.own)
        return theirs

    def turn(self) -> None:
        """Hears what has come, for a moment at most; call it all the time."""
        known = [*self.machines, *self._strangers]
        listening = [self._listener] if self._listener and self.own in self.machines else []
        ready = channel_lib.wait([*known, *listening], POLL_SECONDS)
        if listening and self._listener.fileno() in ready:
            self._accept()
        for machine in known:
            for message in machine.channel.receive():
                if not machine.channel.closed or machine.name:  # its last words count
                    self._hear(machine, message)
            machine.channel.flush()
            machine.channel.tend(machine.silent_seconds)
            if not machine.name and time.monotonic() - machine.begin > channel_lib.HELLO_SECONDS:
                machine.channel.close("it does not say who it is")
            if machine.channel.closed:
                self._lost(machine)

    def drop(self, machine: Machine, why: str) -> None:
        """Loses a machine on purpose."""
        machine.channel.close(why)
        self._lost(machine)

    def finish(self, code: int, text: str) -> None:
        """Tells all machines the end, and waits for a moment until they have heard it.

        This one knows the reason already.
        """
        for machine in self.machines:
            told = "" if machine is self.own else text
            machine.channel.send("finish", code=code, text=told)
        self._is_over = True
        until = time.monotonic() + FAREWELL_SECONDS
        while self.machines and time.monotonic() < until:
            self.turn()
        for machine in [*self.machines, *self._strangers]:
            machine.channel.close("the end")
        if self._listener:
            self._listener.close()

    def _accept(self) -> None:
        try:
            connection, (host, *_) = self._listener.accept()
        except OSError as error:
            self._tell(f"A connection could not be taken: {error.strerror}.")
            return
        if len(self._strangers) >= STRANGERS:
            connection.close()
            self._tell(f"A connection from {host} was closed: too many have not said who they are.")
            return
        self._strangers.append(Machine(Channel(connection), host))

    def _lost(self, machine: Machine) -> None:
        why = machine.channel.closed
        if machine in self._strangers:
            self._strangers.remove(machine)
            self._tell(f"A connection from {machine.host} was closed: {why}.")
        elif machine in self.machines:
            self.machines.remove(machine)
            if machine.is_running:
                lost = Ended(exit_codes.ERROR, machine.first, machine.host, lost=why)
                self.ends.append(lost)
            elif not self._is_over:
                say(f"{machine.host} is gone: {why}.")
            machine.is_running = False

    def _hear(self, machine: Machine, message: dict) -> None:
        kind = message["kind"]
        if not machine.name:
            if kind == "hello":
                self._admit(machine, message)
            else:
                machine.channel.close(f"it began with {kind}")
        elif kind == "port":
            machine.port = message["port"]
        elif kind == "ended":
            fields = {name: message[name] for name in ("code", "process", "last_lines", "stack")}
            self.ends.append(Ended(host=machine.host, **fields))
        elif kind == "gone":
            machine.is_running = False
        elif kind == "signal":
            machine.signals += 1

    def _admit(self, machine: Machine, hello: dict) -> None:
        nonces = machine.nonce, hello["nonce"]
        if not channel_lib.is_proof(hello["proof"], self._token, "machine", *nonces):
            machine.channel.send("unknown")
            machine.channel.close("it does not know the token of this run")
            return
        machine.channel.send("welcome", proof=channel_lib.proof(self._token, "leader", *nonces))
        if hello["command"] != self._command:
            text = f"{hello['host']} was started with {' '.join(map(str, hello['command']))!r}, "
            text += f"and the machine that leads with {' '.join(self._command)!r}: start all alike."
            machine.channel.send("finish", code=exit_codes.REFUSED, text=text)
            machine.channel.close("it was started with another command")
            return
        machine.name, machine.host = hello["name"] or "?", hello["host"]
        machine.processes = max(1, hello["processes"])
        self._strangers.remove(machine)
        self.machines.append(machine)
        if machine is not self.own:
            say(f"{machine.host} is there, as machine {len(self.machines)}.")

    def _tell(self, text: str) -> None:
        """Says something once: a stray connection may come each second."""
        if text not in self._told and len(self._told) < 100:
            self._told.add(text)
            say(text)
