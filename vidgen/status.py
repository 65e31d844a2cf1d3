"""Says how a run stands: its checkpoints, what happened to it, and where its time went.

    python -m vidgen.status --workdir=runs/stage1 [--verify]

Only reads, so that it may be asked while the run goes on. With --verify every checkpoint is
compared with its digests; the command ends with exit code 78 where one of them is damaged.
"""

import collections
import json
import pathlib

import jax
from absl import flags

from vidgen.process import command_line, exit_codes
from vidgen.tasks import runs
from vidgen.training import checkpoint, goodput
from vidgen.weights import digests

LAST_EVENTS = 5


def events(workdir: pathlib.Path) -> list[dict]:
    """The events of a run, oldest first; lines cut short are left out."""
    path = workdir / "events.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        found += [event] if isinstance(event, dict) else []
    return found


def describe(workdir: pathlib.Path, verify: bool) -> tuple[str, bool]:
    """Returns (what is known of a run, whether every checkpoint that was looked at is sound)."""
    lines, problems = [], 0
    saved = checkpoint.steps(workdir)
    for step in saved:
        folder = workdir / "checkpoints" / str(step)
        problem = digests.verify(folder) if verify else ""
        if not (folder / "meta").is_dir():
            continue  # the run has removed it meanwhile
        problems += bool(problem)
        seen = (
            f"DAMAGED: {problem}" if problem else "sound" if verify else "not looked at (--verify)"
        )
        lines.append(f"checkpoint {step}: {seen}")
    lines = lines or ["no checkpoint yet"]
    happened = events(workdir)
    counts = collections.Counter(event.get("event", "?") for event in happened)
    if counts:
        told = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
        lines.append(f"events: {told}; the last of them:")
        lines += [f"  {_short(event)}" for event in happened[-LAST_EVENTS:]]
    if goodput.read(workdir):
        lines += ["", goodput.describe(workdir)]
    return "\n".join(lines), not problems


def _short(event: dict) -> str:
    shown = {name: x for name, x in event.items() if not isinstance(x, dict | list)}
    return ", ".join(f"{name} {x}" for name, x in shown.items())


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Working folder of a run.")
    flags.DEFINE_bool("verify", False, "Compare every checkpoint with its digests.")
    flags.mark_flags_as_required(["workdir"])


def main(argv) -> int:
    del argv
    jax.config.update("jax_platforms", "cpu")  # no memory of a card that the run has
    workdir = pathlib.Path(flags.FLAGS.workdir)
    with runs.refusing("status"):
        runs.load_config(workdir)
        text, is_sound = describe(workdir, flags.FLAGS.verify)
    print(text)
    return 0 if is_sound else exit_codes.STORAGE


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
