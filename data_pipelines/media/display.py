"""How a decoded picture is shown: turned as its file says, transparency over white, RGB of 8 bits.

Turns are EXIF's numbers, 1 (none) to 8. Non-square pixels are not undone.
"""

import struct

import av
import numpy as np
from PIL import Image, ImageOps

# Signs (a, b, c, d) of the display matrix -> EXIF's number; a point (x, y) is shown at
# (a x + c y, b x + d y).
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def to_rgb(
    frame: av.VideoFrame, reformatter: av.video.reformatter.VideoReformatter | None = None
) -> np.ndarray:
    """Returns a decoded frame as it is shown, uint8 [H, W, 3]: turned, transparency over white.

    Args:
        frame: As `video_io.check` hands it to `visit`.
        reformatter: One for all frames of a clip saves half a millisecond a frame.
    """
    reformatter = reformatter or av.video.reformatter.VideoReformatter()
    to = lambda format: reformatter.reformat(frame, format=format, threads=1).to_ndarray()
    if any(component.is_alpha for component in frame.format.components):
        image_HWC = _over_white(to("rgba"))
    else:
        image_HWC = to("rgb24")
    return turn(image_HWC, orientation_of_frame(frame))


def upright(image: Image.Image) -> Image.Image:
    """Returns the image as it is shown: decoded, turned as its EXIF data say, RGB over white."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL would clip at 255
        grey_HW, clear = np.asarray(image), image.info.get("transparency")
        opened = np.where(grey_HW == clear, 255, grey_HW >> 8)
        return Image.fromarray(opened.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")


def orientation_of_frame(frame: av.VideoFrame) -> int:
    """Returns the turn that the display matrix of a frame asks for; odd angles are left alone."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data))
            sign = lambda value: (value > 1 << 12) - (value < -(1 << 12))  # 16.16; cos 86 degrees
            return _ORIENTATIONS.get((sign(a), sign(b), sign(c), sign(d)), 1)
    return 1


def orientation_of_image(image: Image.Image) -> int:
    """Returns the turn that an image's EXIF data ask for; a number that is none is left alone."""
    orientation = image.getexif().get(0x0112, 1)
    return orientation if orientation in range(1, 9) else 1


def turn(image_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the pixels after the turn that an orientation asks for."""
    if orientation >= 5:
        image_HWC = image_HWC.swapaxes(0, 1)
    rows, columns = {
        **{1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1)},
        **{5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)},
    }[orientation]
    return np.ascontiguousarray(image_HWC[::rows, ::columns])


def _over_white(image_HWC: np.ndarray) -> np.ndarray:
    """Composes RGBA over white, as a page shows it."""
    alpha = image_HWC[..., 3:].astype(np.uint16)
    return ((image_HWC[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
