"""How many rows each bucket has in each epoch, kept in a file from one start of a run to the next.

A step follows from the counts of all epochs before it, and to count an epoch its chances have to be
drawn for every clip. A line of the file is one epoch: `digest epoch count count ...`. The digest is
of the rest and of the run's fingerprint, so a line that is cut, damaged or of another run does not
count, and the epoch is counted again. Lines are only ever added.
"""

import collections
import hashlib
import os
import pathlib

import absl.logging
import numpy as np


class Counts(collections.UserDict[int, np.ndarray]):
    """{epoch: rows of each bucket, int64}.

    A file that cannot be read or written is a warning: the run goes on without it.

    Args:
        path: The file, which need not exist.
        key: Names all that the counts depend on.
    """

    def __init__(self, path: str | os.PathLike, key: str):
        super().__init__()
        self._path, self._key, self._is_writing = pathlib.Path(path), key, False
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            self._warn(error)
            lines = []
        for digest, _, facts in (line.partition(b" ") for line in lines):
            if digest == self._digest(facts):
                epoch, *counts = map(int, facts.split())
                self.data[epoch] = np.array(counts, np.int64)
        self._new = {}  # not in the file

    def write(self):
        """Writes what is new, and from now on what is added; for one of the processes."""
        self._is_writing = True
        if not self._new:
            return
        facts = (" ".join(map(str, [k, *v.tolist()])).encode() for k, v in self._new.items())
        # a line before these may have been cut
        text = b"\n" + b"".join(self._digest(fact) + b" " + fact + b"\n" for fact in facts)
        self._new = {}
        try:
            with open(self._path, "ab") as file:
                file.write(text)
        except OSError as error:
            self._warn(error)

    def __setitem__(self, epoch: int, counts: np.ndarray):
        super().__setitem__(epoch, counts)
        self._new[epoch] = counts
        if self._is_writing:
            self.write()

    def _digest(self, facts: bytes) -> bytes:
        return hashlib.sha256(self._key.encode() + b" " + facts).hexdigest()[:32].encode()

    def _warn(self, error: OSError):
        absl.logging.warning("counts of epochs are not kept, a restart takes longer: %s", error)
