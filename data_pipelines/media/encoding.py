"""Encodes videos and images from uint8 RGB frames: one version of the encoder, the same bytes."""

import fractions
import io

import av
import numpy as np
from PIL import Image


def encode_mp4(video_THWC: np.ndarray, fps: float, *, crf: int = 10) -> bytes:
    """Encodes H.264; the same frames give the same bytes for one version of the encoder.

    Pixels are 4:2:0, which every player shows, or 4:4:4 where a side is odd.

    Args:
        video_THWC: uint8 RGB.
        fps: Frames per second; 29.97 and the like become the exact 30000/1001.
        crf: Quality, 0 (best) to 51. Small clips are cheap, so the default is high.
    """
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
        raise ValueError(
            f"the video is {video_THWC.dtype} {video_THWC.shape}, but has to be uint8 [T, H, W, 3]."
        )
    if not 0 < fps <= 1000 or len(video_THWC) == 0:
        raise ValueError(
            f"{len(video_THWC)} frames at fps={fps}: give one frame or more, and 0 < fps <= 1000."
        )
    _, height, width, _ = video_THWC.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream("libx264", rate=_rate(fps))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        # macroblock trees read memory that was never set where sides are under 64 pixels, so the
        # bytes changed from call to call
        context.options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
        context.options |= {"flags": "+bitexact"}
        context.colorspace = av.video.reformatter.Colorspace.ITU601.value
        context.color_range = 1  # limited, as players expect
        to_yuv = av.video.reformatter.VideoReformatter()
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            frame = to_yuv.reformat(
                frame,
                format=stream.pix_fmt,
                dst_colorspace="ITU601",
                dst_color_range="MPEG",
                threads=1,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Encodes one uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC, "RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _rate(fps: float) -> fractions.Fraction:
    whole = round(fps)
    if abs(whole * 1000 / 1001 - fps) < 0.004:
        return fractions.Fraction(whole * 1000, 1001)
    return fractions.Fraction(fps).limit_denominator(1000)
