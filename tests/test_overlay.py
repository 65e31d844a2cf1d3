"""The share of text comes from a detector's boxes, on weights that stand for a text detector."""

import struct

import numpy as np
import pytest

from data_pipelines.stages import overlay


def test_text_share_is_the_area_of_the_boxes_that_the_detector_finds(tmp_path):
    (tmp_path / "white.onnx").write_bytes(white_detector())
    detector = overlay.TextDetector(tmp_path / "white.onnx", side=160)
    title = np.zeros((90, 160, 3), np.uint8)
    assert detector.text_share([title]) == 0
    title[60:80, 30:130] = 255
    # a box is spread beyond what was found, by twice its area over its circumference
    scale = 160 / 90  # the model sees a square
    margin = 2.0 * 20 * scale * 100 / (2 * (20 * scale + 100))
    wanted = (20 * scale + 2 * margin) * (100 + 2 * margin) / 160**2
    assert detector.text_share([title]) == pytest.approx(wanted, rel=0.15)
    half = detector.text_share([title, np.zeros_like(title)])
    assert half == pytest.approx(detector.text_share([title]) / 2)
    rows = [{"id": "a", "stills": [title]}, {"id": "b"}]
    found = list(detector.score_rows(rows))
    assert found == [rows[0] | {"text_share": 2 * half}, rows[1]]
    assert detector.text_share([]) is None


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model")
    for name in ("a.onnx", "none.onnx"):
        with pytest.raises(ValueError, match=f"{name}.*DB text detector"):
            overlay.TextDetector(tmp_path / name)


def white_detector() -> bytes:
    """Returns an ONNX model whose map is near 1 where a picture is white and near 0 elsewhere."""
    weight = struct.pack("<3f", 20, 20, 20)  # of values from -0.4 to 0.6
    initializers = [
        _field(1, 1)
        + _field(1, 3)
        + _field(1, 1)
        + _field(1, 1)
        + _field(2, 1)
        + _field(8, b"w")
        + _field(9, weight),
        _field(1, 1) + _field(2, 1) + _field(8, b"b") + _field(9, struct.pack("<f", -6)),
    ]
    nodes = [
        _field(1, b"x") + _field(1, b"w") + _field(1, b"b") + _field(2, b"y") + _field(4, b"Conv"),
        _field(1, b"y") + _field(2, b"z") + _field(4, b"Sigmoid"),
    ]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"white")
    graph += b"".join(_field(5, tensor) for tensor in initializers)
    graph += _field(11, _value(b"x", (1, 3, 160, 160))) + _field(12, _value(b"z", (1, 1, 160, 160)))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def _value(name: bytes, shape) -> bytes:
    dims = b"".join(_field(1, _field(1, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer: a varint or bytes."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
