"""A corpus of hostile and damaged media files, the same for the same seed, and its check.

    python -m tests.hostile --check=3000 --json=FILE
    python -m tests.hostile --write=DIR --count=500

Each file is decoded by `video_io.check` in a guarded child, as an ingest does it. The check fails
if the parent sees an exception of another kind than a verdict, if a child dies or is killed by its
deadline, takes over 512 MiB, shows pixels of the canary that lies beside every file, if a file that
has to be refused is taken, or one that is valid is refused or gets wrong facts. It prints the share
of damaged files that are flagged, by kind.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import av
import numpy as np
import tqdm
from PIL import Image

from data_pipelines.media import display, encoding, limits, opening, probes, video_io
from data_pipelines.workers import children, guard
from tests import hostile_damage, hostile_files, valid_media

MEMORY_BYTES = 512 << 20
DEADLINE_SECONDS = 60.0
CANARY_RGB = (250, 0, 250)  # of every pixel of the canary video; no other file has it


def cases(count: int, seed: int = 0, folder: str = "/nowhere") -> Iterator[hostile_files.Case]:
    """Yields `count` cases: those made by hand, then damage of every kind to every base in turn.

    Args:
        count: With less than there are by hand, an even choice of them is half of the corpus.
        seed: The same seed gives the same files.
        folder: Where the canary lies, for playlists with absolute paths.
    """
    rng = np.random.default_rng(seed)
    by_hand = list(hostile_files.cases(rng, folder))
    wanted = min(len(by_hand), max(count // 2, count - 6000))
    picked = np.unique(np.linspace(0, len(by_hand) - 1, wanted).round().astype(int))
    yield from (by_hand[i] for i in picked)
    flips = [name for name in hostile_damage.DAMAGE if "flipped" in name]
    # flips three times as often as the others: it is their rate that is asked
    turns = itertools.cycle(
        [*flips, *flips, *flips, *(n for n in hostile_damage.DAMAGE if n not in flips)]
    )
    left = count - len(picked)
    while left > 0:
        damage = next(turns)
        for base, (suffix, content) in hostile_damage.bases().items():
            if left <= 0:
                return
            spoiled = hostile_damage.DAMAGE[damage](content, rng)
            yield hostile_files.Case(damage, spoiled, suffix, hostile_files.DAMAGED, base=base)
            left -= 1


def make_checker(plain: bool = False):
    """Returns what a guarded child does with a file: check it, and say what it saw.

    Args:
        plain: Decode with PyAV and PIL as they are, for comparison.
    """
    valid_media.scene.cache_clear()
    holds = guard.enter(MEMORY_BYTES)
    decode = _plain_check if plain else video_io.check

    def check(_, file) -> dict:
        pixels = hashlib.blake2b(digest_size=16)
        canary = 0

        def visit(number, frame, _seconds):
            nonlocal canary
            if isinstance(frame, av.VideoFrame):
                for plane in frame.planes:
                    pixels.update(plane)
                if number == 0 and frame.width == frame.height == 64:
                    seen = display.to_rgb(frame).reshape(-1, 3).mean(0)
                    canary = int(np.abs(seen - CANARY_RGB).max() < 30)
            else:
                pixels.update(frame.tobytes())

        seen = {"holds": sorted(holds)}
        start = time.thread_time()
        try:
            facts = dataclasses.asdict(decode(file, visit=visit))
            seen |= {"status": "kept", "facts": facts, "pixels": pixels.hexdigest()}
        except limits.MediaError as error:
            seen |= {"status": "refused", "reason": error.reason, "message": str(error)}
        except MemoryError:
            seen |= {"status": "refused", "reason": "too large", "message": "out of memory"}
        peak = _peak_bytes()
        return seen | {"canary": canary, "peak": peak, "cpu": time.thread_time() - start}

    return check


def _plain_check(file, visit) -> probes.Probe:
    """Decodes as most code does: whatever raises no error is taken."""
    try:
        if limits.sniff(file.read(16)) in ("png", "jpeg", "webp"):
            with Image.open(file) as image:
                visit(0, image.convert("RGB"), 0.0)
                return probes.Probe("image", "", 1, image.height, image.width, 0.0)
        file.seek(0)
        with av.open(file) as container:
            for number, frame in enumerate(container.decode(video=0)):
                visit(number, frame, 0.0)
            return probes.Probe("video", "", number + 1, frame.height, frame.width, 0.0)
    except Exception as error:
        raise limits.MediaError("damaged", str(error)) from error


def _peak_bytes() -> int:
    """Returns the most memory that was resident in this process.

    Its ru_maxrss would count that of the parent, which started it by a fork.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def run(
    count: int,
    seed: int = 0,
    num_workers: int = 2,
    deadline_seconds: float = DEADLINE_SECONDS,
    plain: bool = False,
) -> dict:
    """Checks a corpus and returns the report; `report["failures"]` has to be empty.

    Unless `plain`: then most of it is wrong, and the shares of flagged files are for comparison.
    """
    failures, tally = [], collections.defaultdict(collections.Counter)
    flips, reasons = collections.defaultdict(collections.Counter), collections.Counter()
    peak, slowest, holds = 0, (0.0, ""), []
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        children.Pool(
            num_workers,
            "tests.hostile:make_checker",
            (plain,),
            deadline_seconds=deadline_seconds,
            memory_bytes=MEMORY_BYTES,
            max_calls=500,
        ) as pool,
        concurrent.futures.ThreadPoolExecutor(num_workers) as threads,
        tqdm.tqdm(total=count, unit="file", mininterval=2.0) as progress,
    ):
        folder = pathlib.Path(folder)
        _write_canary(folder / "canary.mp4")
        original = {
            name: pool(0, [io_file(content)])
            for name, (_, content) in hostile_damage.bases().items()
        }
        failures += [f"{k}: {v['message']}" for k, v in original.items() if v["status"] != "kept"]

        def one(number: int, case: hostile_files.Case):
            path = place(case, folder, number)
            try:
                with opening.open_regular(path) as file:
                    return case, pool(0, [file])
            except limits.MediaError as error:
                return case, {"status": "refused", "reason": error.reason, "message": str(error)}
            except Exception as error:
                return case, {"status": type(error).__name__, "message": str(error)}
            finally:
                path.unlink()

        for case, seen in _ordered(threads, one, cases(count, seed, str(folder)), 4 * num_workers):
            progress.update()
            tally[case.kind][seen["status"]] += 1
            reasons[seen.get("reason", "")] += 1
            peak = max(peak, seen.get("peak", 0))
            slowest = max(slowest, (seen.get("cpu", 0.0), case.kind))
            holds = seen.get("holds", holds)
            if message := _failure(case, seen):
                failures.append(f"{case.kind} {case.base} {len(case.content)} bytes: {message}")
            if case.expect == hostile_files.DAMAGED:
                _count_flag(flips, case, seen, original[case.base])
    return {
        "files": count,
        "seed": seed,
        "kinds": len(tally),
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures,
        "peak_mib": round(peak / 2**20),
        "slowest_cpu_seconds": [round(slowest[0], 2), slowest[1]],
        "guard": holds,
        "status": {kind: dict(counts) for kind, counts in sorted(tally.items())},
        "reasons": dict(reasons.most_common()),
        "flagged_columns": FLAGGED_COLUMNS,
        "flagged": _rates(flips),
    }


def io_file(content: bytes):
    """Returns an open file of the system that holds these bytes and has no name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def _ordered(threads, function, items, ahead: int):
    """Maps in order, with a few items in flight: the corpus does not fit into memory at once."""
    waiting = collections.deque()
    for number, item in enumerate(items):
        waiting.append(threads.submit(function, number, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def place(case: hostile_files.Case, folder: pathlib.Path, number: int) -> pathlib.Path:
    path = folder / f"{number:06d}{case.suffix}"
    if case.link:
        path.symlink_to(path.name if case.link == "loop" else case.link)
    else:
        path.write_bytes(case.content)
    return path


def _write_canary(path: pathlib.Path):
    buffer = io.BytesIO()
    frames = np.broadcast_to(np.array(CANARY_RGB, np.uint8), (3, 64, 64, 3))
    buffer.write(encoding.encode_mp4(frames, 24))
    path.write_bytes(buffer.getvalue())


def _failure(case: hostile_files.Case, seen: dict) -> str | None:
    """Says what is wrong with a result, None if nothing."""
    if seen["status"] not in ("kept", "refused"):
        return f"{seen['status']}: {seen['message']}"
    if seen.get("canary") and not case.link:
        return "pixels of the canary were seen"
    if seen.get("peak", 0) > MEMORY_BYTES:
        return f"{seen['peak'] >> 20} MiB"
    if case.expect == hostile_files.VALID:
        if seen["status"] != "kept":
            return f"a valid file was refused: {seen['message']}"
        wrong = {
            k: seen["facts"][k]
            for k, v in case.facts
            if not np.isclose(seen["facts"][k], v, rtol=0.02)
        }
        return f"wrong facts {wrong}" if wrong else None
    if case.expect == hostile_files.REFUSED and seen["status"] != "refused":
        return "was taken"
    if case.reasons and seen["reason"] not in case.reasons:
        return f"refused for {seen['reason']!r}, not {case.reasons}: {seen['message']}"
    return None


def _count_flag(flips, case: hostile_files.Case, seen: dict, original: dict):
    same = seen["status"] == "kept" and all(seen[k] == original[k] for k in ("facts", "pixels"))
    outcome = "flagged" if seen["status"] == "refused" else "harmless" if same else "missed"
    group = "images" if case.suffix in limits.IMAGE_SUFFIXES else "videos"
    kinds = [case.kind, "all damage"] + ["all flips"] * ("flipped" in case.kind)
    for kind, base in itertools.product(kinds, (case.base, group, "all")):
        flips[kind, base][outcome] += 1


FLAGGED_COLUMNS = ("files", "flagged", "harmless", "flagged_share", "flagged_of_harmful")


def _rates(flips) -> dict:
    """Returns damage -> base -> FLAGGED_COLUMNS; harmless: facts and all pixels are the same."""
    report: dict = {}
    for (kind, base), counts in sorted(flips.items()):
        total, flagged, harmless = counts.total(), counts["flagged"], counts["harmless"]
        shares = round(flagged / total, 4), round(flagged / max(1, total - harmless), 4)
        report.setdefault(kind, {})[base] = [total, flagged, harmless, *shares]
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=int, metavar="N", help="check a corpus of N files")
    parser.add_argument("--write", metavar="DIR", help="write the corpus to a folder")
    parser.add_argument("--count", type=int, default=3000, help="files to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count())
    parser.add_argument("--plain", action="store_true", help="decode without our checks")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    args = parser.parse_args()
    if args.write:
        folder = pathlib.Path(args.write)
        folder.mkdir(parents=True, exist_ok=True)
        _write_canary(folder / "canary.mp4")
        for number, case in enumerate(cases(args.count, args.seed, str(folder.resolve()))):
            place(case, folder, number)
    if args.check:
        report = run(args.check, args.seed, args.num_workers, plain=args.plain)
        text = json.dumps(report, indent=1)
        if args.json:
            pathlib.Path(args.json).write_text(text + "\n")
        print(text)
        if report["failures"]:
            parser.exit(1, f"{len(report['failures'])} failures\n")


if __name__ == "__main__":
    main()
