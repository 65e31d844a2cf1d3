"""WORKDIR/launch: who leads, the token, an account of the starts, and which hosts failed."""

import json
import os
import pathlib
import secrets
import stat
import time
from collections.abc import Mapping, Sequence

from vidgen.launching import terminal
from vidgen.launching.ended import Ended
from vidgen.process import locks

IN_A_ROW = 2  # starts that a host ends, none of which saved anything, and it is set aside
RECENT = 10  # starts that count beside these,
OF_RECENT = 3  # and how many of them a host may end at most, less one


class Records:
    """The folder of the supervisor that leads a run.

    Args:
        workdir: Of the run.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self.folder = self.workdir / "launch"
        self._lock = None

    def lock(self) -> None:
        """Takes the folder for this supervisor, until it ends, however it ends.

        Raises:
            ValueError: If another one has it.
            OSError: If nothing can be written there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = locks.take(self.folder / "lock", "launch")
        except locks.InUseError as error:
            raise ValueError(
                f"{self.workdir} is in use by {str(error) or 'another launch'}: wait for its end, "
                "stop it, or give another workdir."
            ) from None

    def last_number(self) -> int:
        """Of the starts whose logs are here, or that the account knows of."""
        names = [path.name.partition("-")[0] for path in self.folder.glob("*-*.log")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def saved(self) -> set[int]:
        """The steps of the checkpoints that are there."""
        folder = self.workdir / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return {int(name) for name in names if name.isdecimal() and str(int(name)) == name}

    def add_start(self, line: Mapping) -> None:
        """Adds a start to the account."""
        self._add("starts.jsonl", line)

    def add_host(self, ended: Ended, number: int, has_gained: bool) -> None:
        """Notes that a host ended a start that should have gone on."""
        line = {"host": ended.host, "time": time.time(), "start": number, "code": ended.code}
        self._add("hosts.jsonl", line | {"why": str(ended)[:500], "gained": has_gained})

    def bad_hosts(self, number: int) -> set[str]:
        """Hosts that are to be set aside in the start of this number, if that can be."""
        try:
            text = (self.folder / "hosts.jsonl").read_text(errors="replace")
        except OSError:
            return set()
        return bad_hosts(list(filter(None, map(_host, text.splitlines()))), number)

    def _add(self, name: str, line: Mapping) -> None:
        try:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            terminal.say(f"{self.folder / name} is not written ({error.strerror}): going on.")


def bad_hosts(lines: Sequence[Mapping], number: int) -> set[str]:
    """Hosts that failed too often before the start of this number.

    Args:
        lines: With "host", "start" and "gained", of failures in their order.
        number: Of the start to come.
    """
    bad = set()
    for host in {line["host"] for line in lines}:
        failed = {line["start"]: line["gained"] for line in lines if line["host"] == host}
        recent = [start for start in failed if number - RECENT <= start < number]
        row = [failed.get(number - back, True) for back in range(1, IN_A_ROW + 1)]
        if len(recent) >= OF_RECENT or not any(row):
            bad.add(host)
    return bad


def token(workdir: str | os.PathLike, is_leader: bool) -> str:
    """The secret that the supervisors of a run share; the leader makes it where there is none.

    It is VIDGEN_LAUNCH_TOKEN, or else stands in WORKDIR/launch/token, which only its owner reads.

    Raises:
        ValueError: If others can read the file, or if it holds none.
        OSError: If it is not there, or cannot be made.
    """
    if given := os.environ.get("VIDGEN_LAUNCH_TOKEN"):
        return given
    path = pathlib.Path(workdir) / "launch" / "token"
    if is_leader and not path.exists():
        new = path.with_name(f"token.{os.getpid()}")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.replace(new, path)
    status = path.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(
            f"{path} is of another user, or others can read it, and who knows it can stop the run: "
            "remove it, and the supervisor that leads makes a new one."
        )
    if len(text := path.read_text().strip()) < 16:
        raise ValueError(
            f"{path} holds no token: remove it, and the supervisor that leads makes a new one."
        )
    return text


def _host(text: str) -> Mapping | None:
    """A line of hosts.jsonl, or None where it is torn."""
    try:
        line = json.loads(text)
        return {"host": line["host"], "start": int(line["start"]), "gained": bool(line["gained"])}
    except (ValueError, KeyError, TypeError):
        return None
