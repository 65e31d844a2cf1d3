"""Starts the processes of a run, on one machine or several, and starts them again when one fails.

    python -m vidgen.launch --processes=2 -- vidgen.train --config=... --workdir=...
    python -m vidgen.launch --machines=24 --meet=node-0:29400 -- vidgen.train ...

Everything after `--` is a module of ours with its flags. All processes end together; the next start
goes on from the last checkpoint, at a fresh address, after a pause that grows while nothing is
gained. It gives up after some starts in a row without a new checkpoint, and at once where starting
again cannot help. What the processes write goes to WORKDIR/launch, the first one's to the terminal
too. SIGTERM, SIGINT and SIGUSR1 are passed on: the run saves, and ends with 75.

On several machines the same command runs on each. The machine that HOST is leads; machines beyond
--machines are spare, and take the place of one that is lost or fails often.

Needs nothing but the standard library.
"""

import argparse
import contextlib
import functools
import importlib.util
import math
import sys
import threading
from collections.abc import Sequence

from data_pipelines.process import arguments, outputs
from vidgen.launching import address, member, records
from vidgen.launching.leader import Leader
from vidgen.launching.local import Local
from vidgen.launching.rendezvous import FAREWELL_SECONDS, Rendezvous
from vidgen.launching.terminal import say
from vidgen.process import exit_codes


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns (our own flags, the command after `--`)."""
    parser = _parser()
    split = list(argv).index("--") if "--" in argv else len(argv)
    args, command = parser.parse_args(argv[:split]), list(argv[split + 1 :])
    if args.machines and not args.meet:
        parser.error("--machines needs --meet=HOST:PORT, where the machines find each other")
    if args.meet and not args.machines:
        parser.error("--meet needs --machines, how many a start takes")
    if not command:
        parser.error(
            "there is no command: give it after `--`, such as `-- vidgen.train --config=X`"
        )
    module, *flags = command
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module) is not None:
            module = ""
    if module:
        parser.error(f"there is no module {module!r} to start: give one such as `-- vidgen.train`")
    workdirs = [flag.partition("=")[2] for flag in flags if flag.startswith("--workdir=")]
    if not workdirs or not workdirs[-1]:
        parser.error("the command has no --workdir=FOLDER, in which checkpoints are looked for")
    with parser.refusing():
        outputs.check_folder(workdirs[-1], "--workdir")
    args.workdir = workdirs[-1]
    return args, command


def _parser() -> arguments.Parser:
    parser = arguments.Parser("vidgen.launch", __doc__)
    one, many = arguments.at_least(1), arguments.at_least(0, float)
    parser.add_argument("--processes", type=one, default=1, help="of each machine; 1 by default")
    parser.add_argument("--machines", type=one, help="how many a start takes; others are spare")
    parser.add_argument(
        "--meet", type=_meet, metavar="HOST:PORT", help="where they find each other; HOST leads"
    )
    parser.add_argument(
        "--lead",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether this machine leads; by default the one that HOST is",
    )
    parser.add_argument(
        "--wait_seconds",
        type=many,
        default=300.0,
        help="for machines that are missing, or for the one that leads; 300 by default",
    )
    parser.add_argument(
        "--give_up_after",
        type=one,
        default=3,
        help="starts in a row that save nothing new; 3 by default",
    )
    return parser


def _meet(text: str) -> tuple[str, int]:
    try:
        return address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def supervise(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Supervises this machine, and leads where that falls to it; returns the exit code.

    Raises:
        ValueError: If another supervisor has the working folder, or the token is not kept secret.
        OSError: If nothing can be written there, or a machine that has to lead cannot listen.
    """
    listener = address.listen(*args.meet, args.lead) if args.meet else None
    leads = not args.meet or listener is not None
    make = functools.partial(
        member.Member,
        command,
        args.processes,
        address.this_host(),
        Local(command, args.workdir, address.this_host()),
        token=functools.partial(records.token, args.workdir, leads),
    )
    if not leads:
        where = address.join(*args.meet)
        dial = functools.partial(address.dial, *args.meet)
        return make(dial=dial, leader=where, wait_seconds=args.wait_seconds).go()
    account = records.Records(args.workdir)
    account.lock()
    place = args.meet[0] if args.meet else "127.0.0.1"
    token = records.token(args.workdir, is_leader=True)
    rendezvous = Rendezvous(token, command, listener, place)
    dial = member.once(rendezvous.connect())
    leader = Leader(
        rendezvous,
        account,
        machines=args.machines or 1,
        give_up_after=args.give_up_after,
        wait_seconds=args.wait_seconds,
    )
    this = make(dial=dial, leader="this supervisor", wait_seconds=0.0, silent_seconds=math.inf)
    thread = threading.Thread(target=leader.go, name="leader", daemon=True)
    thread.start()
    code = this.go()
    thread.join(2 * FAREWELL_SECONDS)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    args, command = parse(sys.argv[1:] if argv is None else argv)
    try:
        return supervise(args, command)
    except (ValueError, OSError) as error:
        say(str(error))
        return exit_codes.REFUSED


if __name__ == "__main__":
    sys.exit(main())
