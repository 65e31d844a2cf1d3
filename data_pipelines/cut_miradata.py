"""Cuts MiraData's clips out of their whole videos, which may last hours: copies, nothing is coded.

    python -m data_pipelines.cut_miradata --source=DIR

A cut begins at the last keyframe before its clip and ends after the clip's last frame. Its name
tells how far into it the clip begins: video_clips/000000000/000000000231.4+1.500000.mp4 has the
clip from 1.5 s on, and `data_pipelines.sources` reads it so, to the frame. After that a clip is a
file of its own size: the ingest need not go through hours of video for each of its clips, and the
whole videos may be deleted.

Runs in child processes that can open nothing else; run again, it makes what is missing. What cannot
be cut stands in DIR/cut_failed.csv. Exit codes: 0, 3 some failed, 75 stopped by SIGTERM or Ctrl-C,
2 wrong usage.
"""

import concurrent.futures
import csv
import io
import os
import pathlib
import signal
from typing import BinaryIO

import av
import tqdm

from data_pipelines.media import limits, opening, video_io
from data_pipelines.process import arguments
from data_pipelines.sources import miradata, rows
from data_pipelines.workers import children, guard

SOME_FAILED, STOPPED = 3, 75
MAX_CUT_BYTES = 384 << 20  # a clip of MiraData has 88 MB on average
_CHILD_BYTES = 1280 << 20  # the cut is held in memory, and once more as the answer
_DEADLINE_SECONDS = 120.0


def cut(file: BinaryIO, start: float, end: float) -> tuple[bytes, float]:
    """Copies the packets of a clip into an mp4 file.

    Args:
        file: A video that can seek.
        start: Seconds.
        end: Seconds.

    Returns:
        (the file, seconds in it at which the clip begins).

    Raises:
        MediaError: If it cannot be read, or has nothing at these times.
    """
    format = limits.sniff(file.read(16))
    file.seek(0)
    if format not in ("mov", "matroska", "avi"):
        raise video_io.MediaError("unknown format", "not a video file.")
    buffer = io.BytesIO()
    try:
        with (
            av.open(file, format=format, metadata_errors="replace") as source,
            av.open(buffer, "w", format="mp4") as target,
        ):
            stream = opening.main_video(source)
            target.flags |= av.container.Flags.bitexact.value
            copy = target.add_stream_from_template(stream, opaque=True)
            seconds = stream.time_base
            zero = 0 if format == "avi" else stream.start_time or 0
            source.seek(zero + int(start / seconds), stream=stream, backward=True)
            packets = _packets(source, stream, zero + end / seconds, format == "avi")
            shown = [packet.pts for packet in packets] or [0]
            first = shown[0]
            if (first - zero) * seconds >= end or (max(shown) - zero) * seconds < start:
                raise video_io.MediaError("too short", f"nothing between {start} and {end} s.")
            for packet in packets:
                packet.pts, packet.dts = packet.pts - first, packet.dts - first
                packet.stream = copy
                target.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, video_io.MediaError):
            raise
        raise video_io.MediaError("damaged", f"it cannot be copied ({error}).") from error
    return buffer.getvalue(), max(0.0, float(start - (first - zero) * seconds))


def _packets(source, stream, end, has_rate_alone: bool) -> list[av.Packet]:
    """The packets from the next keyframe on that are to be decoded before `end`, with both times.

    Matroska tells when a packet is shown, and after a jump not when it is decoded; AVI only that.
    """
    if has_rate_alone and stream.codec_context.has_b_frames:
        raise video_io.MediaError("no times", "its frames change order, and have no times.")
    packets, size = [], 0
    for packet in source.demux(stream):
        if has_rate_alone:  # what FFmpeg gives for times of an AVI file is a guess
            packet.pts = packet.dts
        if packet.pts is None or not (packets or packet.is_keyframe):
            continue
        if packets and packet.pts < packets[0].pts:  # needs what comes before the keyframe
            continue
        if packet.dts is not None and packet.dts >= end:
            break
        packets.append(packet)
        size += packet.size
        if size > MAX_CUT_BYTES:
            raise video_io.MediaError("too large", f"over {MAX_CUT_BYTES} bytes.")
    known = next((i for i, packet in enumerate(packets) if packet.dts is not None), len(packets))
    step = round(1 / (stream.average_rate or 25) / stream.time_base)
    at = packets[known].dts if known < len(packets) else min((p.pts for p in packets), default=0)
    for i, packet in enumerate(packets[:known]):
        packet.dts = at - (known - i) * step
    return [packet for packet in packets if packet.dts is not None]


def make_cutter(memory_bytes: int):
    """Returns what a child process does with (start, end) and an open file."""
    guard.enter(memory_bytes)

    def run(times: tuple[float, float], file: BinaryIO) -> tuple[bytes, float]:
        return cut(file, *times)

    return run


def main(argv: list[str] | None = None):
    parser = arguments.Parser("data_pipelines.cut_miradata", __doc__)
    parser.add_argument("--source", required=True, help="folder of MiraData, or its table")
    count = arguments.at_least(0)
    parser.add_argument("--jobs", type=count, default=0, help="child processes; 0: one a processor")
    args = parser.parse_args(argv)
    try:
        with parser.refusing():
            table = miradata.find_table(args.source, "--source=")
            failed, made, there = cut_all(table, args.jobs or os.cpu_count() or 1)
    except KeyboardInterrupt:
        parser.exit(STOPPED, "\nstopped: the same command goes on.\n")
    print(f"{table}: {made:,} clips cut, {there:,} were there, {len(failed):,} failed")
    report = pathlib.Path(os.path.dirname(table), "cut_failed.csv")
    report.unlink(missing_ok=True)
    if failed:
        with open(report, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("id", "reason", "message"), *failed])
        parser.exit(SOME_FAILED, f"see {report}\n")


def cut_all(table: str, jobs: int) -> tuple[list[tuple[str, str, str]], int, int]:
    """Cuts all clips of a table whose whole videos are there.

    Returns:
        ([(id, reason, message)] of those that failed, clips cut, clips that were there before).

    Raises:
        ValueError: If the table cannot be read.
    """
    root = os.path.dirname(table) or "."
    todo, failed, there = [], [], 0
    for number, row in miradata.read_table(table):
        clip_id = f"row-{number:06d}"
        try:
            if isinstance(row, rows.Refused):
                raise row
            clip_id = rows.clean_id(row.get("clip_id") or row.get("index"))
            folder, stem = miradata.clip_name(row)
            times = rows.clean_times(*miradata.clip_times(row))
            place = os.path.join(root, "video_clips", folder)
            name = miradata.cut_name(row)
            if miradata.find_cut(place, name):
                there += 1
                continue
            todo.append((clip_id, miradata.find_raw(root, (folder, stem)), place, name, times))
        except rows.Refused as error:
            failed.append((clip_id, error.reason, str(error)))
    make = "data_pipelines.cut_miradata:make_cutter"
    with (
        children.Pool(
            jobs, make, (_CHILD_BYTES,), _DEADLINE_SECONDS, memory_bytes=_CHILD_BYTES
        ) as pool,
        concurrent.futures.ThreadPoolExecutor(jobs) as threads,
        tqdm.tqdm(total=len(todo), desc="cut", unit="clip", mininterval=0.5) as progress,
    ):

        def run(raw: str, place: str, name: str, times: tuple[float, float]):
            with open(raw, "rb") as file:
                content, begin = pool(times, [file])
            os.makedirs(place, exist_ok=True)
            target = os.path.join(place, f"{name}+{begin:.6f}.mp4")
            with open(target + ".part", "wb") as file:
                file.write(content)
            os.replace(target + ".part", target)

        futures = {threads.submit(run, *rest): clip_id for clip_id, *rest in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except (video_io.MediaError, children.WorkerDied) as error:
                    failed.append((futures[future], error.reason, str(error)))
                except (OSError, MemoryError) as error:
                    failed.append((futures[future], "unreadable", f"{error}"))
                progress.set_postfix(failed=len(failed), refresh=False)
                progress.update()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            pool.close()
            raise
    made = len(todo) - sum(1 for future in futures if future.exception())
    return sorted(failed), made, there


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT off
        signal.signal(number, signal.default_int_handler)
    main()
