"""Text files as editors write them: with a byte order mark, in UTF-16, with CR LF at line ends."""

import codecs
import os
import pathlib

MARK_BYTES = 4  # of a file's head, which tell its encoding
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding(head: bytes) -> str:
    """Python's name of the encoding by a file's first bytes: UTF-8 where no mark tells another."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


def decode(content: bytes, errors: str = "strict") -> str:
    """The text of a file, without its byte order mark.

    Raises:
        UnicodeDecodeError: If it is not in its encoding, and `errors` does not forgive that.
    """
    return content.decode(encoding(content[:MARK_BYTES]), errors)


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, without their ends.

    U+2028 and its like end no line: they stand within captions.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is not in its encoding.
    """
    text = decode(pathlib.Path(path).read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n") if text else []
