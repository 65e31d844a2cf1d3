"""Reads tf.train.Example messages without copying what they hold.

The general readers copy a message two or three times and build an object for each field, which for
records of a megabyte takes longer than everything else that the loader does with them. The format:
https://protobuf.dev/programming-guides/encoding, and `example.proto` of TensorFlow.
"""

import numpy as np

_BYTES, _FLOATS = 1, 2  # fields of tf.train.Feature; 3: integers


def parse(content: bytes | memoryview) -> dict[str, memoryview | list]:
    """Returns the features by name: a view of bytes, or a list of numbers.

    Raises:
        ValueError: If the bytes are no such message.
    """
    message, found = memoryview(content), {}
    try:
        for number, start, end in _fields(message, 0, len(message)):
            for _, *entry in _fields(message, start, end) if number == 1 else ():
                # a key and its feature, which in turn holds one list of values
                (_, *key), (_, *feature) = _fields(message, *entry)
                ((kind, *values),) = _fields(message, *feature)
                found[str(message[slice(*key)], "utf-8")] = _values(message, kind, *values)
    except (ValueError, IndexError) as error:
        raise ValueError(f"no tf.train.Example: {error}.") from error
    return found


def _fields(message: memoryview, place: int, end: int) -> list[tuple[int, int, int]]:
    """(number, start, end) of the fields of a message that has only fields with a length."""
    found = []
    while place < end:
        tag, size, place = message[place], message[place + 1], place + 2
        if size >= 128:
            size, place = _varint(message, place - 1)
        if tag & 7 != 2 or tag >= 128 or place + size > end:
            raise ValueError(f"a field of type {tag & 7} and {size} bytes")
        found.append((tag >> 3, place, place + size))
        place += size
    return found


def _values(message: memoryview, kind: int, start: int, end: int) -> memoryview | list:
    fields = _fields(message, start, end)
    _, start, end = fields[0] if fields else (1, 0, 0)
    if kind == _BYTES:
        return message[start:end]
    if kind == _FLOATS:
        return np.frombuffer(message[start:end], "<f4").tolist()
    numbers, place = [], start
    while place < end:
        number, place = _varint(message, place)
        numbers.append(number - (1 << 64) if number >> 63 else number)
    return numbers


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """(value, place behind it) of an integer of seven bits a byte."""
    value, shift = 0, 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("an integer has no end")
