"""How much of the picture is covered by text, by a text detector whose weights come by path.

OpenCV has no detector without weights. Any DB model (Liao et al. 2020, arXiv:1911.08947) in ONNX
will do, such as those of OpenCV's model zoo and PP-OCR's detectors. Runs in the parent, on stills.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from data_pipelines.stages import scores

# as in OpenCV's samples for these models
_BINARY, _BOX, _UNCLIP = 0.3, 0.5, 2.0
_SMALLEST = 3  # pixels: less is noise
_MEAN = (122.68, 116.67, 104.01)  # of BGR, 0 to 255


class TextDetector:
    """Measures the share of text.

    Args:
        weights: ONNX file of a DB model.
        side: Height and width that pictures are brought to, a multiple of 32.

    Raises:
        ImportError: If OpenCV is not installed.
        ValueError: If the file is no such model.
    """

    def __init__(self, weights: str | os.PathLike, side: int = 480):
        cv2 = _opencv()
        self.side = side
        try:
            self.model = cv2.dnn.readNetFromONNX(os.fspath(weights))
        except (cv2.error, SystemError) as error:  # the binding hides one in the other
            raise ValueError(
                f"text_weights={weights} cannot be read: give an ONNX file of a DB text detector "
                f"({str(error.__cause__ or error).strip()})."
            ) from error

    def text_share(self, images: Sequence[np.ndarray | bytes]) -> float | None:
        """Returns the mean share of the picture that lies in boxes of text, 0 to 1.

        Args:
            images: Stills of a clip, uint8 RGB [H, W, 3] or JPEG files; none gives None.
        """
        shares = [self._share(image) for image in images]
        return float(np.mean(shares)) if shares else None

    def score_rows(self, rows: Iterable[dict]) -> Iterator[dict]:
        """Adds `text_share` to ledger rows that have `stills`."""
        for row in rows:
            share = self.text_share(row.get("stills") or ())
            yield row if share is None else row | {"text_share": share}

    def _share(self, image: np.ndarray | bytes) -> float:
        cv2 = _opencv()
        if isinstance(image, bytes):
            image = np.asarray(Image.open(io.BytesIO(image), formats=["JPEG"]).convert("RGB"))
        blob = cv2.dnn.blobFromImage(
            np.ascontiguousarray(image[..., ::-1]), 1 / 255, (self.side, self.side), _MEAN
        )
        self.model.setInput(blob)
        found_HW = np.reshape(self.model.forward(), (self.side, self.side))
        return float(_fill_boxes(found_HW).mean())


def _fill_boxes(found_HW: np.ndarray) -> np.ndarray:
    """Returns where text is, uint8 [H, W] of 0 and 1, from the model's map of 0 to 1.

    The model marks the kernels of text regions. A kernel of area A and circumference L is spread by
    2 A / L on each side (Eq. 10 of the paper, and OpenCV's factor).
    """
    cv2 = _opencv()
    mask_HW = np.zeros(found_HW.shape, np.uint8)
    kernels = np.uint8(found_HW > _BINARY)
    contours, _ = cv2.findContours(kernels, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        inside = cv2.drawContours(np.zeros_like(mask_HW), [contour], -1, 1, -1).astype(bool)
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < _SMALLEST or found_HW[inside].mean() < _BOX:
            continue
        margin = _UNCLIP * width * height / (2 * (width + height))
        box = cv2.boxPoints((centre, (width + 2 * margin, height + 2 * margin), angle))
        cv2.fillPoly(mask_HW, [np.int32(np.round(box))], 1)
    return mask_HW


def _opencv():
    return scores.opencv(threads=os.cpu_count() or 1)
