"""What the whole will take, and what will become of it, from a sample of clips.

The sample goes through the same stages in a temporary folder. Nothing is written elsewhere.
"""

import collections
import pathlib
import tempfile
import threading
import time
from collections.abc import Sequence

import pyarrow as pa
import tqdm

from data_pipelines.shards import builder
from data_pipelines.sources import clips
from data_pipelines.stages import ledger, parts, runner, select, shards, summary

_CLIPS_WRITTEN = 64  # kept clips of the sample that are written to shards, at most


def estimate(table: Sequence[clips.Clip], plain: dict, num_workers: int, size: int) -> str:
    """Examines a sample and returns what to print.

    Args:
        table: All clips of the source.
        plain: The config as plain values.
        num_workers: Child processes.
        size: Clips to examine, of those that the source has not refused: evenly spread over the
            table, the same ones each time.

    Raises:
        ValueError: If the sample would be empty, or no clip of it is kept.
    """
    usable = [clip for clip in table if "refused" not in clip.given]
    refused = collections.Counter(
        str(clip.given["refused"]).partition(":")[0] for clip in table if "refused" in clip.given
    )
    unusable = ", ".join(f"{reason}: {number:,}" for reason, number in refused.items())
    if size < 1:
        raise ValueError(f"--dry-run={size}: give 1 clip or more.")
    if not usable:
        raise ValueError(f"no row of the source can be used ({unusable}).")
    size = min(size, len(usable))
    sample = [usable[i * len(usable) // size] for i in range(size)]
    with tempfile.TemporaryDirectory(prefix="dry-run-") as folder:
        work = pathlib.Path(folder) / "out.work"
        (work / "parts").mkdir(parents=True)
        parts.write_table(work / "clips.parquet", sample)
        examiner = parts.Examiner(work / "clips.parquet", work / "parts", plain, num_workers)
        try:
            _warm_up(examiner, sample[0], num_workers)
            started = time.monotonic()
            numbers = range(parts.num_parts(size))
            with tqdm.tqdm(total=size, desc="examine a sample", unit="clip") as bar:
                runner.run_local(examiner, numbers, num_workers, lambda clips, _: bar.update(clips))
            examine_seconds = time.monotonic() - started
        finally:
            examiner.close()
        rows = select.select(parts.read_rows(work / "parts", size), plain, quiet=True)
        kept = shards.kept_rows(rows)
        if not len(kept):
            raise ValueError(_why_none(rows, plain, f"{size:,} of {len(usable):,} clips"))
        shard_seconds, shard_bytes = _write(work, kept.slice(0, _CLIPS_WRITTEN), plain, num_workers)
    share = len(usable) / size
    shard_share = share * len(kept) / max(1, min(len(kept), _CLIPS_WRITTEN))
    seconds = [examine_seconds * share, shard_seconds * shard_share]
    count, left_out = summary.count(rows)
    per_clip = sum(seconds) * num_workers / len(usable)
    lines = [
        f"dry run: {size:,} of {len(usable):,} clips; nothing was written",
        summary.rules(plain),
        *([f"rows that cannot be used: {unusable}"] if unusable else []),
        "",
        summary.verdicts(count, left_out),
        "",
        f"  the whole with {num_workers} workers, about",
        f"  examine   {summary.human_seconds(seconds[0]):>14}",
        f"  shards    {summary.human_seconds(seconds[1]):>14}",
        f"  in all    {summary.human_seconds(sum(seconds)):>14}"
        f"   ({per_clip:.3g} s of a core a clip)",
        f"  kept      {round(len(kept) * share):>14,} clips",
        f"  space     {summary.human_bytes(shard_bytes * shard_share):>14}",
    ]
    if size < len(usable) and (plain["dedup"]["exact"] or plain["dedup"]["near"] >= 0):
        lines.append("\n  a sample shows few of the duplicates: the whole will keep less")
    return "\n".join(lines)


def _why_none(rows: pa.Table, plain: dict, sample: str) -> str:
    """Returns what to say of a sample of which nothing is kept, and what to change."""
    refused = {*ledger.counts(rows)}
    asked = [rule for rule in plain["rules"] if rule in refused]
    advice = []
    if asked:
        rest = "; ".join(rule for rule in plain["rules"] if rule not in refused)
        advice.append(
            f"Rules that keep more: --config.rules with other numbers for {' and '.join(asked)}"
            + (f", beside {rest}." if rest else ".")
        )
    if refused - {*asked}:
        advice.append("What the other reasons mean: docs/ledger.md.")
    return f"dry run: {summary.why_none(rows, sample)} {' '.join(advice)}"


def _warm_up(examiner: parts.Examiner, clip: clips.Clip, num_workers: int):
    """Starts the child processes, which take a second each that the whole will not notice."""
    threads = [
        threading.Thread(target=examiner.clip_rows, args=(clip,)) for _ in range(num_workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _write(work: pathlib.Path, kept, plain: dict, num_workers: int) -> tuple[float, int]:
    """Writes kept clips to one shard; returns its seconds and bytes."""
    if not len(kept):
        return 0.0, 0
    builder.start(work.with_suffix(""), "video", 1, key="dry run")
    writer, started = shards.Writer(plain, num_workers), time.monotonic()
    try:
        writer.write_shard(work, 0, 1, kept)
    finally:
        writer.close()
    return time.monotonic() - started, writer.num_bytes
