"""Exact and near duplicates: which clips show the same as a better one.

Near duplicates are clips whose perceptual hashes differ, frame by frame, in at most `distance` of
their 64 bits. Of any two, the better is kept: the larger picture, then the longer clip, then the
smaller id. A clip is left out only for one that is kept: likeness is not handed on along a chain.

The search is exact. Clips are compared with those that are kept, never with each other: the better
half is settled first, then what is like none of its kept ones is settled among itself. A cluster of
look-alikes costs as many comparisons as it has clips. Two hashes within `distance` bits agree in at
least one of `distance` + 1 bands of bits, so only clips that share a band, in each of the frames
where that is needed to make groups small, are compared (Norouzi et al. 2012, arXiv:1307.2982).
"""

from collections.abc import Sequence

import numpy as np

_SMALL = 512  # clips that are compared pair by pair
_FEW = 1 << 20  # pairs that are compared rather than told apart by another frame
_AT_ONCE = 1 << 22  # pairs in memory
_SAMPLE = 1024  # clips of each side, from which it is guessed how well a frame tells apart


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
    inverse, order = inverse.reshape(-1), np.argsort(first)
    better = np.arange(len(unique))
    _settle(unique[order], better, distance)
    # equal hashes share the fate of the best of them
    better_of = np.empty(len(unique), np.int64)
    better_of[order] = first[order][better]
    kept_instead = better_of[inverse]
    worse = np.flatnonzero(kept_instead != np.arange(len(words)))
    return dict(zip(worse.tolist(), kept_instead[worse].tolist(), strict=True))


def _settle(words: np.ndarray, better: np.ndarray, distance: int) -> None:
    """Writes into `better`, which begins as 0, 1, 2, ..., what is kept instead of each clip."""
    spans = [(np.arange(len(words)), False)]
    while spans:
        rows, is_first_settled = spans.pop()
        half = len(rows) // 2
        if is_first_settled:
            kept = rows[:half][better[rows[:half]] == rows[:half]]
            match = _match(words[kept], words[rows[half:]], distance)
            is_like = match < len(kept)
            better[rows[half:][is_like]] = kept[match[is_like]]
            spans.append((rows[half:][~is_like], False))
        elif len(rows) <= _SMALL:
            _settle_few(words, rows, better, distance)
        else:
            spans += [(rows, True), (rows[:half], False)]


def _settle_few(words, rows, better, distance: int) -> None:
    """The definition, read literally."""
    left = rows
    while len(left) > 1:
        best, others = left[0], left[1:]
        is_like = (np.bitwise_count(words[others] ^ words[best]) <= distance).all(axis=1)
        better[others[is_like]] = best
        left = others[~is_like]


def _match(kept: np.ndarray, new: np.ndarray, distance: int) -> np.ndarray:
    """For each row of `new`, the first of `kept` that is near it in each frame, or len(kept)."""
    bands = np.array_split(np.arange(64, dtype=np.uint64), distance + 1)
    masks = [np.uint64(sum(1 << int(bit) for bit in band)) for band in bands]
    match = np.full(len(new), len(kept))
    todo = [(np.arange(len(kept)), np.arange(len(new)), tuple(range(kept.shape[1])))]
    while todo:
        ours, theirs, frames = todo.pop()
        frame = _sharpest(kept[ours], new[theirs], frames, masks)
        if frame is None:
            whole = np.zeros(len(theirs), np.int64), np.full(len(theirs), len(ours))
            _compare(kept, new, ours, theirs, *whole, distance, match)
            continue
        rest = tuple(other for other in frames if other != frame)
        for mask in masks:
            keys = kept[ours, frame] & mask
            by_key = np.argsort(keys, kind="stable")
            wanted = new[theirs, frame] & mask
            order = np.argsort(wanted, kind="stable")
            low = np.searchsorted(keys[by_key], wanted[order], "left")
            high = np.searchsorted(keys[by_key], wanted[order], "right")
            is_hit = high > low
            left, right, low, high = ours[by_key], theirs[order[is_hit]], low[is_hit], high[is_hit]
            _, starts, members = np.unique(low, return_index=True, return_counts=True)
            is_large = members * (high - low)[starts] > _FEW
            for start, count in zip(starts[is_large], members[is_large], strict=True):
                group = left[low[start] : high[start]], right[start : start + count]
                todo.append((*group, rest))
            is_few = np.repeat(~is_large, members)
            found = right[is_few], low[is_few], high[is_few]
            _compare(kept, new, left, *found, distance, match)
    return match


def _sharpest(kept, new, frames: Sequence[int], masks) -> int | None:
    """The frame whose bands tell most pairs apart; None if to compare all pairs is less work."""
    if len(kept) * len(new) <= _FEW or not frames:
        return None
    shares = {frame: 0.0 for frame in frames}
    for frame in frames:
        one, other = (x[:: -(-len(x) // _SAMPLE), frame] for x in (kept, new))
        for mask in masks:
            values, counts = np.unique(one & mask, return_counts=True)
            keys = other & mask
            at = np.minimum(np.searchsorted(values, keys), len(values) - 1)
            shares[frame] += (counts[at] * (values[at] == keys)).sum() / (len(one) * len(other))
    best = min(shares, key=shares.get)
    return best if shares[best] < 0.5 else None


def _compare(kept, new, ours, theirs, low, high, distance: int, match) -> None:
    """Compares each new clip theirs[i] with the kept ones ours[low[i]:high[i]]."""
    ends = np.cumsum(high - low)
    start = 0
    while start < len(theirs):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, "right")))
        part, start = slice(start, stop), stop
        counts = high[part] - low[part]
        first = np.cumsum(counts) - counts
        pair = np.arange(counts.sum()) + np.repeat(low[part] - first, counts)
        left, right = ours[pair], np.repeat(theirs[part], counts)
        for frame in range(kept.shape[1]):
            close = np.bitwise_count(kept[left, frame] ^ new[right, frame]) <= distance
            left, right = left[close], right[close]
        np.minimum.at(match, right, left)
