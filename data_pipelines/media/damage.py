"""Finds damage inside coded pictures, which decoders are made to paint over.

Decoders refuse some damage, if they are told to look (`STRICT`); libvpx and dav1d notice when data
run out. Other damage still decodes to something:

- mostly to something that needs fewer data, so that the picture is whole without its last bytes too
  (`is_whole_too_soon`), which an undamaged one is not: for images and Motion JPEG;
- in HEVC to something that depends on how it is read: rows have their positions in the data stated
  (wavefronts, as x265 writes them), and follow from each other too (`SecondReading`).

H.264 and AV1 decoders compare lengths themselves.
"""

import io
import struct
import zlib

import av
import numpy as np
from PIL import Image

from data_pipelines.media.limits import Limits, MediaError

# What FFmpeg's demuxers and decoders check beyond what is needed to go on.
STRICT = "crccheck+bitstream+buffer+explode"
# libvpx notices that a tile needs more data than there are; FFmpeg's own decoders mostly do not.
_DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
# Bytes that a whole picture needs for certain: coders flush some that no decoder needs.
_SHORTER = {"jpeg": 2, "VP8L": 6, "VP8 ": 6}

av.logging.set_level(av.logging.PANIC)  # errors arrive as exceptions; FFmpeg's own lines go


def strict_decoder(own: av.VideoCodecContext, limits: Limits) -> av.VideoCodecContext:
    """Returns the decoder that notices most, opened like a stream's own, and prepared."""
    name = _DECODERS.get(own.name)
    if name in av.codecs_available and (own.pix_fmt or "").endswith("p"):  # of 8 bits
        return prepare(av.CodecContext.create(name, "r"), limits, STRICT)
    return prepare(own, limits, STRICT)


def prepare(decoder: av.VideoCodecContext, limits: Limits, flags: str) -> av.VideoCodecContext:
    """Sets limits, error detection and one thread; returns the decoder."""
    decoder.options = {"err_detect": flags, "max_pixels": str(limits.max_pixels)}
    if decoder.codec.name == "libdav1d" and flags == STRICT:
        decoder.options |= {"strict": "strict"}  # each tile has to end where its data end
    decoder.thread_count = 1
    return decoder


def check_image(file, format: str, limits: Limits):
    """Checks the coded data of an image.

    Raises:
        MediaError: If they are damaged.
    """
    if format == "png":
        return  # has checksums
    file.seek(0)
    content = file.read()
    if format == "jpeg":  # libjpeg fills up what is missing and says nothing
        decoder = prepare(av.CodecContext.create("mjpeg", "r"), limits, STRICT)
        try:
            pictures = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
        except av.FFmpegError as error:
            raise MediaError("damaged", f"decoding fails ({error}).") from error
        if not pictures or pictures[0].is_corrupt:
            raise MediaError("damaged", "the picture is damaged.")
    if _image_is_whole_too_soon(content, format):
        raise MediaError("damaged", "the picture is whole before its data end.")


def is_whole_too_soon(packet: av.Packet, own: av.VideoCodecContext) -> bool:
    """Says whether a coded picture of Motion JPEG decodes without its last bytes."""
    is_picture = own.codec.canonical_name == "mjpeg" and packet.size
    return bool(is_picture) and _image_is_whole_too_soon(bytes(packet), "jpeg")


class SecondReading:
    """Decodes a stream another way beside the first, and compares the pictures. HEVC alone.

    With threads, rows are read from where the slice says that they are; with one, from where the
    row before ended.
    """

    def __init__(self, own: av.VideoCodecContext, limits: Limits):
        self.decoder = None
        if own.codec.canonical_name == "hevc":
            self.decoder = prepare(av.CodecContext.create("hevc", "r"), limits, STRICT)
            self.decoder.extradata = own.extradata
            self.decoder.thread_type, self.decoder.thread_count = "SLICE", 2

    def agrees(self, packet: av.Packet, frames: list[av.VideoFrame]) -> bool:
        """Says whether a packet gives these frames here too."""
        if self.decoder is None:
            return True
        return [*map(_digest, self.decoder.decode(packet))] == [*map(_digest, frames)]


def _digest(frame: av.VideoFrame) -> list[int]:
    """Sums of the planes, without what lies beyond the picture's width."""
    sums = []
    for plane, component in zip(frame.planes, frame.format.components, strict=False):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        width = component.width * (2 if component.bits > 8 else 1)
        sums.append(zlib.crc32(np.ascontiguousarray(rows[: component.height, :width])))
    return sums


def _image_is_whole_too_soon(content: bytes, format: str) -> bool:
    short = _shorter_jpeg(content) if format == "jpeg" else _shorter_webp(content)
    try:
        with Image.open(io.BytesIO(short), formats=[format.upper()]) as image:
            image.draft("L", (1, 1))  # a JPEG at an eighth of its size: all data, few pixels
            image.load()
    except (OSError, SyntaxError, ValueError, struct.error):
        return False
    return True


def _shorter_jpeg(content: bytes) -> bytes:
    return content[: max(0, content.rfind(b"\xff\xd9") - _SHORTER["jpeg"])]


def _shorter_webp(content: bytes) -> bytes:
    """Cuts the picture's own data; the lengths of the chunks are made to fit."""
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack("<4sI", content[at : at + 8])
        if name in (b"VP8 ", b"VP8L"):
            size = max(0, size - _SHORTER[name.decode()])
            body = content[:at] + struct.pack("<4sI", name, size) + content[at + 8 : at + 8 + size]
            body += bytes(size % 2)
            return body[:4] + struct.pack("<I", len(body) - 8) + body[8:]
        at += 8 + size + size % 2
    return b""
