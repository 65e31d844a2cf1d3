"""Exact and near duplicates: which clips show the same as a better one.

Near duplicates are clips whose perceptual hashes differ, frame by frame, in at most `distance` of
their 64 bits. Of any two, the better is kept: the larger picture, then the longer clip, then the
smaller id. A clip is left out only for one that is kept: likeness is not handed on along a chain.

The search is exact. Two hashes within `distance` bits agree in at least one of `distance` + 1 bands
of bits, so only clips that share a band, in each of the frames where that is needed to make groups
small, are compared (Norouzi et al. 2012, arXiv:1307.2982, with one table a band).
"""

from collections.abc import Iterator, Sequence

import numpy as np

_SMALL = 512  # a group of this many is compared pair by pair


def exact(keys: Sequence, ids: Sequence[str]) -> dict[int, int]:
    """Returns {row: row that is kept instead} among rows with equal keys; None never repeats.

    The smallest id of each key is kept.
    """
    best: dict = {}
    for row, key in enumerate(keys):
        if key is not None and (key not in best or ids[row] < ids[best[key]]):
            best[key] = row
    return {row: best[key] for row, key in enumerate(keys) if key is not None and best[key] != row}


def near(
    hashes: Sequence[bytes | None],
    distance: int,
    *,
    pixels: Sequence[int],
    seconds: Sequence[float],
    ids: Sequence[str],
) -> dict[int, int]:
    """Returns {row: row that is kept instead}.

    Args:
        hashes: For each row the 8-byte hashes of its frames, one after the other; None or empty:
            the row is like no other. Rows with different numbers of frames are not compared.
        distance: Bits of 64 that may differ, in each frame; 0 to 32.
        pixels: Of the picture of each row: the larger is better.
        seconds: Length of each row: then the longer is better.
        ids: Then the smaller is better.

    Raises:
        ValueError: If the distance is out of range, or a hash is not of whole frames.
    """
    if not 0 <= distance <= 32:
        raise ValueError(f"dedup distance={distance}: give 0 (equal hashes) to 32 of 64 bits.")
    by_frames: dict[int, list[int]] = {}
    for row, value in enumerate(hashes):
        if value:
            if len(value) % 8:
                raise ValueError(f"clip {ids[row]!r} has a hash of {len(value)} bytes, not 8 each.")
            by_frames.setdefault(len(value) // 8, []).append(row)
    instead = {}
    for frames, rows in sorted(by_frames.items()):
        rows.sort(key=lambda row: (-pixels[row], -seconds[row], ids[row]))
        words = np.frombuffer(b"".join(hashes[row] for row in rows), ">u8")
        found = _keep_best(words.reshape(-1, frames).astype(np.uint64), distance)
        instead |= {rows[worse]: rows[better] for worse, better in found.items()}
    return instead


def _keep_best(words: np.ndarray, distance: int) -> dict[int, int]:
    """{worse: better} places among hashes [clips, frames], sorted from best to worst."""
    unique, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    pairs = [first[pair] for pair in _pairs(unique, distance)]
    worse, better = np.zeros((2, 0), np.int64)
    if pairs:
        pairs = np.unique(np.sort(np.concatenate(pairs, axis=1), axis=0), axis=1)
        better, worse = pairs[:, np.lexsort(pairs)]  # by the worse, then by the better
    instead: dict[int, int] = {}
    for low, high in zip(better.tolist(), worse.tolist(), strict=True):
        if low not in instead:
            instead.setdefault(high, low)
    # equal hashes share the fate of the best of them
    for place in np.flatnonzero(first[inverse] != np.arange(len(words))).tolist():
        best = int(first[inverse[place]])
        instead[place] = instead.get(best, best)
    return instead


def _pairs(words: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yields arrays [2, n] of places whose hashes are within the distance in each frame.

    A pair may come more than once.
    """
    bands = np.array_split(np.arange(64, dtype=np.uint64), distance + 1)
    masks = [np.uint64(sum(1 << int(bit) for bit in band)) for band in bands]
    groups = [(np.arange(len(words)), 0)]
    while groups:
        members, frame = groups.pop()
        if len(members) <= _SMALL or frame == words.shape[1]:
            yield from _compare(words, members, distance)
            continue
        for mask in masks:
            keys = words[members, frame] & mask
            order = np.argsort(keys, kind="stable")
            starts = np.flatnonzero(np.diff(keys[order])) + 1
            bounds = np.concatenate([[0], starts, [len(order)]])
            sizes = np.diff(bounds)
            for size in np.unique(sizes[(sizes > 1) & (sizes <= _SMALL)]):  # alike ones at once
                block = members[order[bounds[:-1][sizes == size][:, None] + np.arange(size)]]
                yield from _compare_blocks(words, block, distance)
            for i in np.flatnonzero(sizes > _SMALL):
                groups.append((members[order[bounds[i] : bounds[i + 1]]], frame + 1))


def _compare_blocks(words: np.ndarray, block: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Compares within each row of `block` [groups, size] of places."""
    size = block.shape[1]
    one, other = np.triu_indices(size, 1)
    step = max(1, (1 << 20) // len(one))
    for start in range(0, len(block), step):
        left = block[start : start + step][:, one].reshape(-1)
        right = block[start : start + step][:, other].reshape(-1)
        yield from _near(words, left, right, distance)


def _compare(words: np.ndarray, members: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Compares all pairs of a group of any size, a stripe at a time."""
    if len(members) < 2:
        return
    step = max(1, (1 << 20) // len(members))
    for start in range(0, len(members), step):
        one = np.arange(start, min(start + step, len(members)))
        left, right = np.repeat(one, len(members)), np.tile(np.arange(len(members)), len(one))
        keep = left < right
        yield from _near(words, members[left[keep]], members[right[keep]], distance)


def _near(words, left, right, distance: int) -> Iterator[np.ndarray]:
    for frame in range(words.shape[1]):
        close = np.bitwise_count(words[left, frame] ^ words[right, frame]) <= distance
        left, right = left[close], right[close]
    if len(left):
        yield np.stack([left, right])
