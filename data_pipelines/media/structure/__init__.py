"""Walks the boxes, elements and chunks of a media file, before a decoder sees any of it.

A container says most things twice: lengths nest, tables have as many entries as samples, samples
lie side by side in the data, checksums stand beside what they sum. A decoder reads around most
damage; here each byte has to belong to one piece, so that damage is an error, and a hostile header
is refused while only its lengths have been read. Sources: ISO/IEC 14496-12 (mp4, mov), RFC 9559
(Matroska) and RFC 8794 (EBML), the AVI RIFF reference, the PNG specification, ITU T.81 (JPEG), RFC
9649 (WebP). What is inside a coded frame is the decoder's to judge.
"""

import struct
from typing import BinaryIO

import data_pipelines.media.structure.images as images
import data_pipelines.media.structure.matroska as matroska
import data_pipelines.media.structure.mov as mov
import data_pipelines.media.structure.pieces as pieces
import data_pipelines.media.structure.riff as riff
from data_pipelines.media.limits import DEFAULT_LIMITS, Limits, MediaError


def check(file: BinaryIO, format: str, limits: Limits = DEFAULT_LIMITS) -> list[int] | None:
    """Checks the container of a file, and counts the coded pictures of each video track.

    Args:
        file: Seekable; its position changes.
        format: As `media.sniff` names it.

    Returns:
        The numbers, hidden pictures too; None for images.

    Raises:
        MediaError: If the pieces do not fit together ("damaged", "broken header"), or a header is
            over a limit ("too large").
    """
    size = file.seek(0, 2)
    walk = {
        "mov": mov.check,
        "matroska": matroska.check,
        "avi": riff.check_avi,
        "png": images.check_png,
        "jpeg": images.check_jpeg,
    }
    try:
        return walk.get(format, riff.check_webp)(pieces.Source(file, size, limits))
    except (struct.error, IndexError, KeyError, OverflowError) as error:
        raise MediaError("damaged", f"the {format} header ends within a field.") from error
