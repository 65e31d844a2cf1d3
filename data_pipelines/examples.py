"""Reads tf.train.Example messages without copying what they hold.

The general readers copy a message two or three times and build an object for each field, which for
records of a megabyte takes longer than everything else that the loader does with them. The format:
https://protobuf.dev/programming-guides/encoding, and `example.proto` of TensorFlow.
"""

from collections.abc import Iterator

import numpy as np

_BYTES, _FLOATS = 1, 2  # fields of tf.train.Feature; 3: integers


def parse(content: bytes | memoryview) -> dict[str, memoryview | list]:
    """Returns the features by name: a view of bytes, or a list of numbers.

    Raises:
        ValueError: If the bytes are no such message.
    """
    found = {}
    for number, features in _fields(memoryview(content)):
        for _, entry in _fields(features) if number == 1 else ():
            key, feature = b"", memoryview(b"")
            for place, part in _fields(entry):
                if place == 1:
                    key = bytes(part)
                elif place == 2:
                    feature = part
            for kind, values in _fields(feature):
                found[key.decode()] = _values(kind, values)
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that has only fields with a length."""
    place, end = 0, len(message)
    while place < end:
        tag = message[place]
        size, place = _varint(message, place + 1)
        if tag & 7 != 2 or tag >= 128 or place + size > end:
            raise ValueError(f"no tf.train.Example: a field of type {tag & 7} and {size} bytes.")
        yield tag >> 3, message[place : place + size]
        place += size


def _values(kind: int, values: memoryview) -> memoryview | list:
    content = next((part for _, part in _fields(values)), memoryview(b""))
    if kind == _BYTES:
        return content
    if kind == _FLOATS:
        return np.frombuffer(content, "<f4").tolist()
    numbers, place = [], 0
    while place < len(content):
        number, place = _varint(content, place)
        numbers.append(number - (1 << 64) if number >> 63 else number)
    return numbers


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """(value, place behind it) of an integer of seven bits a byte."""
    value, shift = 0, 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("no tf.train.Example: an integer has no end.")
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
