"""Measures the decode check against `ffmpeg -f null`, in processor seconds of one thread.

    python -m tests.measure_decode --json=docs/benchmarks/decode.json

Each file is checked in turn by `ffmpeg -v error -threads 1 -i FILE -f null -`, by `video_io.check`
in this process, and by a guarded child of a pool, which reads, digests, checks and answers, as an
ingest does; the turns repeat, and the least of each counts. Clips a second are those of the child.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import platform
import resource
import subprocess
import tempfile
import time

import av
import imageio_ffmpeg

from data_pipelines.media import probes, video_io
from data_pipelines.workers import children, guard
from tests import valid_media

# name -> (size, frames at 24 fps, files); the web's usual settings
SETS = {
    "720p, 3 s": ((720, 1280), 72, 3),
    "360p, 5 s": ((360, 640), 120, 4),
    "tiny, 0.7 s": ((96, 128), 17, 12),
}


def make_set(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    size, frames, files = SETS[name]
    paths = []
    for number in range(files):
        content = valid_media.video(
            size=size,
            frames=frames,
            number=number % len(valid_media.REAL),
            options={"preset": "fast", "crf": str(20 + number)},
        )
        paths.append(folder / f"{size[0]}p{number}.mp4")
        paths[-1].write_bytes(content)
    return paths


def _warm_up(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "warm_up.mp4"
    path.write_bytes(valid_media.video())
    return path


def by_ffmpeg(path: pathlib.Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-threads", "1"]
    command += ["-i", str(path), "-threads", "1", "-f", "null", "-"]
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_check(path: pathlib.Path) -> float:
    start = time.process_time()
    video_io.check(path)
    return time.process_time() - start


def make_checker():
    """Returns what a guarded child does with a file: digest and check."""
    guard.enter()

    def check(_, file) -> tuple[str, probes.Probe]:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, video_io.check(file)

    return check


def in_pool(pool: children.Pool, path: pathlib.Path) -> float:
    with open(path, "rb") as file:
        start = time.process_time(), _child_seconds(pool)
        pool(0, [file])
    return time.process_time() - start[0] + _child_seconds(pool) - start[1]


def _child_seconds(pool: children.Pool) -> float:
    """Returns what the scheduler counts, of all threads of the children.

    A child's own clock of its process moves in ticks, once its processor time has a limit.
    """
    files = [
        f for pid in pool.pids() for f in pathlib.Path(f"/proc/{pid}").glob("task/*/schedstat")
    ]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def measure(repeats: int) -> dict:
    results, rates = {}, {}
    with (
        tempfile.TemporaryDirectory() as folder,
        children.Pool(1, "tests.measure_decode:make_checker", memory_bytes=512 << 20) as pool,
    ):
        ways = {
            "ffmpeg": by_ffmpeg,
            "check": by_check,
            "check, digest, in a guarded child": lambda path: in_pool(pool, path),
        }
        pool(0, [_warm_up(pathlib.Path(folder)).open("rb")])
        for name in SETS:
            paths = make_set(pathlib.Path(folder), name)
            least = collections.defaultdict(lambda: float("inf"))
            for _ in range(repeats):
                for path in paths:
                    for way, call in ways.items():
                        least[way, path] = min(least[way, path], call(path))
            total = {way: sum(least[way, path] for path in paths) for way in ways}
            results[name] = {
                "files": len(paths),
                "frames": sum(video_io.probe(path).num_frames for path in paths),
                "bytes": sum(path.stat().st_size for path in paths),
                "cpu_seconds": {way: round(seconds, 4) for way, seconds in total.items()},
                "of_ffmpeg": {
                    way: round(seconds / total["ffmpeg"], 3) for way, seconds in total.items()
                },
            }
            rates[name] = round(len(paths) / total["check, digest, in a guarded child"], 1)
    sums = {
        way: sum(result["cpu_seconds"][way] for result in results.values())
        for way in results[next(iter(results))]["cpu_seconds"]
    }
    return {
        "command": "python -m tests.measure_decode --json=docs/benchmarks/decode.json",
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "versions": {"av": av.__version__, "ffmpeg": imageio_ffmpeg.get_ffmpeg_version()},
        "unit": "processor seconds of one thread, user and system, least of "
        f"{repeats} interleaved turns",
        "sets": results,
        "all": {way: round(seconds / sums["ffmpeg"], 3) for way, seconds in sums.items()},
        "clips_a_second_a_core": rates,
    }


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    args = parser.parse_args()
    text = json.dumps(measure(args.repeats), indent=1)
    if args.json:
        pathlib.Path(args.json).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
