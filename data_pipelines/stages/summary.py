"""What a run tells at its end: tables with human units."""

import collections
import dataclasses

import pyarrow as pa

from data_pipelines.stages import ledger


@dataclasses.dataclass
class Stage:
    """What one stage did in this run; work that was found done does not count."""

    name: str
    clips: int
    seconds: float
    bytes: int = 0

    def line(self) -> str:
        rate = f"{self.clips / self.seconds:,.1f}" if self.clips and self.seconds else ""
        size = human_bytes(self.bytes) if self.bytes else ""
        spent = human_seconds(self.seconds)
        return f"  {self.name:<10}{self.clips:>12,}{spent:>12}{rate:>12}{size:>12}"


def stages(done: list[Stage]) -> str:
    """Returns the table of stages."""
    head = f"  {'stage':<10}{'clips':>12}{'time':>12}{'clips/s':>12}{'bytes':>12}"
    return "\n".join([head, *(stage.line() for stage in done)])


def verdicts(kept: int, left_out: dict[str, int]) -> str:
    """Returns the table of kept and left-out clips by rule, most frequent first."""
    total = kept + sum(left_out.values())
    lines = [("kept", kept), *sorted(left_out.items(), key=lambda item: (-item[1], item[0]))]
    width = max(len(name) for name, _ in lines)
    return "\n".join(
        f"  {name:<{width}}{count:>12,}{count / max(total, 1):>9.1%}" for name, count in lines
    )


def human_bytes(count: float) -> str:
    """Returns "1.5 GB": powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """Returns "12.3 s", "4 min 05 s", "3 h 20 min" or "2 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def rules(plain: dict) -> str:
    """Returns the rules in force, as --config.rules takes them."""
    return f'rules in force: --config.rules="{"; ".join(plain["rules"])}"'


def why_none(rows: pa.Table, source: str) -> str:
    """Returns what to say of a ledger that keeps no clip: which rules left out how many.

    Args:
        rows: The ledger.
        source: Where its rows are from: "12 rows of clips.csv".
    """
    counts = sorted(ledger.counts(rows).items(), key=lambda item: -item[1])
    first = rows.slice(0, 1).to_pylist()[0]
    return (
        f"no usable clip among the {source} ({', '.join(f'{rule}: {n:,}' for rule, n in counts)}). "
        f"The first, {first['id']}: {first['message']}"
    )


def count(rows) -> tuple[int, dict[str, int]]:
    """Returns how many clips of a ledger are kept, and how many each rule left out."""
    statuses = collections.Counter(rows["status"].to_pylist())
    return statuses[ledger.KEPT], ledger.counts(rows)
