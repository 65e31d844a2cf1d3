"""Whole files in odd but legal ways: which of them are refused as if they were damaged?

    python -m tests.whole_files --count=300 --seed=0 --json=docs/benchmarks/whole_files.json

Encoders, muxers and oddities are drawn from the tables below, one file after the other; PyAV makes
every second one, and the program ffmpeg the others where it is installed. A file counts if a plain
decode of it says nothing (`ffmpeg -v error`; without the program, the log of PyAV), and then has
to pass `examine`. Verdicts that a file has earned, such as "variable rate", are no refusals.
"""

import argparse
import collections
import dataclasses
import fractions
import io
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import av
import numpy as np

from data_pipelines.stages import examine
from tests import moving_textures, odd_media

os.environ.setdefault("SVT_LOG", "1")  # errors alone
EARNED = ("variable rate", "interlaced", "high dynamic range", "unknown format")
_MOV, _ALL = ("mp4", "mov", "ipod", "3gp", "3g2", "f4v", "psp"), ("mp4", "mov", "matroska", "avi")
_X265 = "log-level=none:pools=none:frame-threads=1:"
# Encoder: pixel formats, options of which one is drawn, containers.
ENCODERS = {
    "libx264": (
        ("yuv420p", "yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuvj420p", "yuv420p"),
        [
            *({"x264-params": f"open-gop=1:keyint=8:bframes={n}"} for n in (1, 3)),
            {"x264-params": "bframes=16:b-pyramid=normal:ref=8:b-adapt=2"},
            {"x264-params": "intra-refresh=1:keyint=10"},
            {"x264-params": "keyint=1"},
            {"x264-params": "keyint=250:scenecut=0:slices=4"},
            {"x264-params": "aud=1:repeat-headers=1:frame-packing=3"},
            {"x264-params": "stitchable=1:constrained-intra=1:bluray-compat=1"},
            {"x264-params": "cabac=0:8x8dct=0:weightp=0:no-deblock=1"},
            {"x264-params": "nal-hrd=cbr:vbv-maxrate=400:vbv-bufsize=400:bitrate=400:filler=1"},
            {"x264-params": "lossless=1:qp=0"},
            {"preset": "ultrafast", "tune": "zerolatency"},
            {"preset": "veryslow"},
        ],
        (*_MOV, "ismv", "matroska"),
    ),
    "libx265": (
        ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le"),
        [
            {"x265-params": _X265 + "keyint=8:open-gop=1:bframes=4:b-pyramid=1"},
            {"x265-params": _X265 + "keyint=8:open-gop=0:radl=2:bframes=3"},
            {"x265-params": _X265 + "repeat-headers=1:aud=1:hrd=1:vbv-maxrate=500:vbv-bufsize=500"},
            {"x265-params": _X265 + "lossless=1:wpp=0"},
            {"x265-params": _X265 + "ctu=16:no-sao=1:ref=4"},
            {"x265-params": _X265 + "intra-refresh=1:keyint=10"},
        ],
        ("mp4", "mov", "ismv", "matroska"),
    ),
    "libvpx-vp9": (
        ("yuv420p", "yuv422p", "yuv444p"),
        [
            {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "12"},
            {"deadline": "realtime", "cpu-used": "8", "error-resilient": "1"},
            {"deadline": "good", "cpu-used": "5", "lossless": "1"},
        ],
        ("webm", "matroska", "mp4"),
    ),
    "libvpx": (
        ("yuv420p",),
        [
            {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "12"},
            {"deadline": "realtime", "cpu-used": "8"},
        ],
        ("webm", "matroska", "avi"),
    ),
    "libsvtav1": (
        ("yuv420p", "yuv420p10le"),
        [{"preset": "10"}, {"preset": "12", "svtav1-params": "pred-struct=1"}],
        ("webm", "matroska", "mp4"),
    ),
    "mpeg4": (
        ("yuv420p",),
        [{"bf": "2", "g": "12"}, {"flags": "+mv4+aic"}, {"flags": "+qpel"}, {"g": "1"}],
        (*_ALL, "3gp", "ipod"),
    ),
    "mpeg2video": (
        ("yuv420p", "yuv422p"),
        [{"bf": "2", "g": "12"}, {"g": "1"}, {"b_strategy": "1", "bf": "3", "g": "30"}],
        ("matroska", "mov", "mp4"),
    ),
    "mpeg1video": (("yuv420p",), [{"bf": "2", "g": "12"}], ("matroska", "mov")),
    "mjpeg": (("yuvj420p", "yuvj422p", "yuvj444p"), [{}, {"huffman": "default"}], _ALL),
    "prores_ks": (("yuv422p10le", "yuv444p10le"), [{"profile": "0"}, {}], ("mov", "matroska")),
    "ffv1": (
        ("yuv420p", "yuv422p", "yuv444p", "bgr0", "gray"),
        [{"level": "3", "slices": "4", "slicecrc": "1"}, {"level": "1", "g": "5"}],
        ("matroska", "avi", "mov"),
    ),
    "huffyuv": (("yuv422p",), [{}], ("avi", "matroska")),
    "utvideo": (("yuv420p", "yuv422p", "gbrp"), [{}], ("avi", "matroska", "mov")),
    "magicyuv": (("yuv420p", "yuv444p", "gbrp"), [{}], ("avi", "matroska")),
    "rawvideo": (("yuv420p", "uyvy422", "bgr24"), [{}], ("avi", "mov", "matroska")),
    "png": (("rgb24", "rgba", "gray"), [{}], ("mov", "avi", "matroska")),
    "qtrle": (("rgb24",), [{}], ("mov",)),
    "jpeg2000": (("yuv420p", "rgb24"), [{}], ("mov", "mp4")),
    "flv": (("yuv420p",), [{}], ("avi", "matroska")),
    "msmpeg4": (("yuv420p",), [{}], ("avi", "matroska")),
    "wmv2": (("yuv420p",), [{}], ("avi", "matroska")),
}
_WEIGHTS = {"libx264": 8, "libx265": 4, "libvpx-vp9": 3, "mpeg4": 2, "mpeg2video": 2}
MUXERS = {
    "mov": [
        *({}, {}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}),
        *({"movflags": "negative_cts_offsets"}, {"movflags": "cmaf+delay_moov"}),
        *({"movflags": "frag_every_frame"}, {"movflags": "dash+global_sidx+frag_keyframe"}),
        *({"use_editlist": "0"}, {"movflags": "frag_keyframe+separate_moof+default_base_moof"}),
        *({"movie_timescale": "600"}, {"video_track_timescale": "600"}, {"brand": "qt  "}),
    ],
    "matroska": [
        *({}, {"live": "1"}, {"cluster_size_limit": "3000"}, {"cluster_time_limit": "60"}),
        *({"write_crc32": "0"}, {"cues_to_front": "1"}, {"reserve_index_space": "5000"}),
    ],
    "avi": [{}, {"reserve_index_space": "4000"}, {"write_channel_mask": "0"}],
}
ODDITIES = ("none", "none", "sound", "late", "cut", "cover", "uneven")
# Of the program alone.
_PROGRAM = ("trimmed", "timecode", "chapters", "subtitle", "attached", "offset", "two", "joined")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a file is made; `oddity` is of ODDITIES, or of the program's own."""

    codec: str
    format: str
    options: dict[str, str]
    container: str
    muxer: dict[str, str]
    oddity: str
    size: tuple[int, int]
    rate: int
    frames: int
    by: str  # "PyAV" or "ffmpeg"


def draw(rng: np.random.Generator, by: str) -> Recipe:
    weights = np.array([_WEIGHTS.get(name, 1) for name in ENCODERS], float)
    codec = str(rng.choice(list(ENCODERS), p=weights / weights.sum()))
    formats, options, containers = ENCODERS[codec]
    pick = lambda values: values[int(rng.integers(len(values)))]
    format, container = pick(formats), pick(containers)
    family = container if container in ("matroska", "avi") else "mov"
    family = "matroska" if container == "webm" else family
    # x265 writes beyond its memory where pictures are smaller than its blocks
    smallest = 64 if codec in ("libx265", "libsvtav1") else 24
    height, width = (int(n) for n in rng.integers(smallest, 130, 2))
    if "420" in format or "422" in format:  # most encoders take no other; some do
        height, width = (n - n % 2 if rng.random() < 0.7 else n for n in (height, width))
    oddities = ODDITIES + (_PROGRAM if by == "ffmpeg" else ())
    rate, frames = pick((12, 24, 25, 30, 60)), int(rng.integers(3, 50))
    return Recipe(
        *(codec, format, pick(options), container, pick(MUXERS[family])),
        *(pick(oddities), (height, width), rate, frames, by),
    )


def make(recipe: Recipe, folder: pathlib.Path) -> pathlib.Path | None:
    """Makes a file; None: its encoder or muxer does not take that."""
    path = folder / f"made.{recipe.container}"
    try:
        by = _by_program if recipe.by == "ffmpeg" else _by_pyav
        by(recipe, path)
    except (av.FFmpegError, ValueError, OSError, subprocess.CalledProcessError):
        return None
    return path


def _by_pyav(recipe: Recipe, path: pathlib.Path):
    rng, step = np.random.default_rng(recipe.frames), 90_000 // recipe.rate
    times = step * np.arange(recipe.frames)
    if recipe.oddity == "uneven":  # as a phone's: a little off, and now and then a frame is lost
        times = np.delete(times + rng.integers(0, step // 8, len(times)), len(times) // 2)
    times += 22_500 if recipe.oddity == "late" else 0
    with av.open(str(path), "w", format=recipe.container, options=recipe.muxer) as target:
        target.flags |= av.container.Flags.bitexact.value
        stream = target.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.height, stream.width, stream.pix_fmt = *recipe.size, recipe.format
        stream.codec_context.thread_count = 1
        if recipe.container != "avi" and not recipe.codec.startswith("mpeg"):
            stream.codec_context.time_base = base = fractions.Fraction(1, 90_000)
        else:
            times, base = np.arange(recipe.frames), fractions.Fraction(1, recipe.rate)
        track = picture = None
        if recipe.oddity in ("sound", "late"):
            track = target.add_stream(_sound(recipe.container), rate=48_000)
        if recipe.oddity == "cover":
            picture = odd_media._add_cover(target, "mjpeg")
            shown = odd_media.frame(255, 32, 32, picture.pix_fmt)
            packets = picture.encode(shown) + picture.encode(None)
        for number, time in enumerate(times.tolist()):
            shown = odd_media.frame(number, *recipe.size, recipe.format)
            shown.pts, shown.time_base = time, base
            target.mux(stream.encode(shown))
        target.mux(stream.encode(None))
        if picture:
            target.mux(packets)
        if track:
            _add_silence(target, track, recipe.frames / recipe.rate)
    if recipe.oddity == "cut":
        path.write_bytes(odd_media.from_keyframe(path.read_bytes(), 1, recipe.container))


def _sound(container: str) -> str:
    return {"webm": "libopus", "avi": "libmp3lame"}.get(container, "aac")


def _add_silence(target, track, seconds: float):
    context = track.codec_context
    size = context.frame_size or 1024
    for start in range(0, int(seconds * 48_000), size):
        samples = np.zeros((1, size), np.float32)
        sound = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        sound.sample_rate, sound.pts = 48_000, start
        resampler = av.AudioResampler(context.format, context.layout, 48_000)
        target.mux(track.encode(*resampler.resample(sound)))
    target.mux(track.encode(None))


def _by_program(recipe: Recipe, path: pathlib.Path):
    height, width = recipe.size
    odd, folder, seconds = recipe.oddity, path.parent, recipe.frames / recipe.rate
    flags = lambda options: [word for k, v in options.items() for word in (f"-{k}", v)]
    source = f"testsrc2=size={width}x{height}:rate={recipe.rate}:duration={seconds}"
    inputs, maps = ["-f", "lavfi", "-i", source], ["-map", "0:v"]
    if odd in ("sound", "late", "trimmed", "subtitle", "chapters"):
        inputs += ["-f", "lavfi", "-i", f"sine=duration={seconds + 0.3}"]
        maps += ["-map", "1:a", "-c:a", _sound(recipe.container)]
    coded = ["-c:v", recipe.codec, *flags(recipe.options), "-pix_fmt", recipe.format]
    filters = {"uneven": "setpts='PTS+0.1*mod(N,2)/FRAME_RATE/TB'", "late": "setpts=PTS+0.4/TB"}
    if odd in filters:
        coded += ["-vf", filters[odd], "-fps_mode", "vfr"]
    mux = [*flags(recipe.muxer), "-f", recipe.container]
    first = folder / f"first.{recipe.container}"
    if odd not in ("trimmed", "cut", "subtitle", "chapters", "attached", "offset", "two", "joined"):
        more = ["-timecode", "01:00:00:00"] if odd == "timecode" else []
        _ffmpeg(*inputs, *maps, *coded, *more, *mux, path)
        return
    _ffmpeg(*inputs, *maps, *coded, "-f", recipe.container, first)
    copy, given = ["-map", "0", "-c", "copy"], ["-i", first]
    if odd in ("trimmed", "cut"):  # an edit list hides what comes before; "cut": no sound
        given = ["-ss", f"{seconds / 2:.3f}", *given]
        copy += ["-avoid_negative_ts", "make_zero"] if odd == "cut" else []
    elif odd == "offset":
        copy += ["-output_ts_offset", "1.5"]
    elif odd == "two":
        copy += ["-map", "0:v", "-disposition:v:1", "0"]
    elif odd == "subtitle":
        (folder / "a.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nhello\n")
        given += ["-i", folder / "a.srt"]
        kind = {"matroska": "srt", "webm": "webvtt"}.get(recipe.container, "mov_text")
        copy += ["-map", "1", "-c:s", kind]
    elif odd == "chapters":
        (folder / "a.txt").write_text(
            ";FFMETADATA1\ntitle=a\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=100\ntitle=one\n"
        )
        given += ["-i", folder / "a.txt"]
        copy += ["-map_metadata", "1", "-map_chapters", "1"]
    elif odd == "attached":
        (folder / "a.txt").write_text("a font")
        copy += ["-attach", folder / "a.txt", "-metadata:s:t", "mimetype=text/plain"]
    elif odd == "joined":
        (folder / "list.txt").write_text(f"file '{first}'\n" * 2)
        given = ["-f", "concat", "-safe", "0", "-i", folder / "list.txt"]
    _ffmpeg(*given, *copy, *mux, path)


def _ffmpeg(*words):
    command = ["ffmpeg", "-v", "error", "-y", "-nostdin", "-threads", "1", *map(str, words[:-1])]
    command += ["-threads", "1", "-bitexact", str(words[-1])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def is_silent(path: pathlib.Path, program: bool) -> bool:
    """Tells whether a plain decode of the video gives frames and no message."""
    if program:
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v:0"]
        done = subprocess.run([*command, "-f", "null", "-"], capture_output=True, timeout=60)
        return done.returncode == 0 and not done.stderr
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as said, av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        return bool(frames) and not said
    except av.FFmpegError:
        return False
    finally:
        av.logging.set_level(level)


@dataclasses.dataclass(frozen=True)
class Result:
    recipe: Recipe
    rule: str | None
    message: str | None


def results(count: int, seed: int, program: bool) -> Iterator[Result | None]:
    """Yields what becomes of `count` whole files, and None for each that is none, or not made."""
    number = counted = 0
    while counted < count:
        rng = np.random.default_rng([seed, number])
        recipe = draw(rng, "ffmpeg" if program and number % 2 else "PyAV")
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            path = make(recipe, pathlib.Path(folder))
            if path is None or not is_silent(path, program):
                yield None
                continue
            content = path.read_bytes()
        (row,) = examine.examine(io.BytesIO(content), moving_textures.clip())
        counted += 1
        yield Result(recipe, row.get("rule"), row.get("message"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    program = shutil.which("ffmpeg") is not None
    found = list(results(args.count, args.seed, program))
    whole = [one for one in found if one]
    rules = collections.Counter(one.rule or "passed" for one in whole)
    refused = [one for one in whole if one.rule and one.rule not in EARNED]
    for one in refused:
        print(f"{one.rule}: {one.message} {dataclasses.asdict(one.recipe)}")
    tell = lambda name: dict(collections.Counter(getattr(o.recipe, name) for o in whole))
    result = {
        "files": len(whole),
        "seed": args.seed,
        "not_counted": len(found) - len(whole),  # not made, or a plain decode complains
        "made_by": tell("by"),
        "verdicts": dict(rules),
        "refused": len(refused),
        **{f"by_{name}": tell(name) for name in ("codec", "container", "oddity")},
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
