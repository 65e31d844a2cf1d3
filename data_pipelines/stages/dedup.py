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
import pyarrow as pa
import pyarrow.compute as pc

_ROWS = 1 << 16  # that are Python objects at a time
_SMALL = 512  # clips that are compared pair by pair
_FEW = 1 << 22  # pairs that are compared rather than told apart by another frame
_AT_ONCE = 1 << 22  # pairs in memory
_BLOCK = 1 << 12  # pairs of a group, from which it is compared as a matrix: 1.4 ns a pair, not 10
_IN_CACHE = 1 << 16  # pairs of a matrix that are compared at once
_SAMPLE = 1024  # clips of each side, from which it is guessed how well a frame tells apart


def exact(keys: Sequence[Sequence[int]], ids: pa.ChunkedArray) -> dict[int, int]:
    """Returns {row: row that is kept instead} among rows that are equal in all keys.

    The smallest id of equal rows is kept.

    Args:
        keys: Arrays of numbers, one of each row.
        ids: Of the rows.
    """
    rank = _rank(ids)
    order = np.lexsort((rank, *keys))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.logical_or.reduce([np.diff(np.asarray(key)[order]) != 0 for key in keys])
    best = order[is_first][np.cumsum(is_first) - 1]
    return dict(zip(order[~is_first].tolist(), best[~is_first].tolist(), strict=True))


def near(
    hashes: pa.ChunkedArray,
    distance: int,
    *,
    pixels: Sequence[int],
    seconds: Sequence[float],
    ids: pa.ChunkedArray,
) -> dict[int, int]:
    """Returns {row: row that is kept instead}.

    Args:
        hashes: For each row the 8-byte hashes of its frames, one after the other; null or empty:
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
    length = pc.fill_null(pc.binary_length(hashes), 0).to_numpy()
    if (is_cut := length % 8 != 0).any():
        row = int(np.argmax(is_cut))
        raise ValueError(
            f"clip {ids[row].as_py()!r} has a hash of {length[row]} bytes, not 8 each."
        )
    facts = _rank(ids), -np.asarray(seconds), -np.asarray(pixels)
    instead = {}
    for size in np.unique(length[length > 0]).tolist():
        rows = np.flatnonzero(length == size)
        words = _words(hashes.filter(pa.array(length == size))).reshape(-1, size // 8)
        order = np.lexsort([fact[rows] for fact in facts])
        found = _keep_best(words[order], distance)
        rows = rows[order]
        instead |= {int(rows[worse]): int(rows[better]) for worse, better in found.items()}
    return instead


def _rank(ids: pa.ChunkedArray) -> np.ndarray:
    """The place of each row among the sorted ids; of equal ids the first row comes first."""
    order = pc.sort_indices(ids).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _words(hashes: pa.ChunkedArray) -> np.ndarray:
    """All their bytes as numbers of 64 bits, a few rows at once."""
    parts = [np.zeros(0, np.uint64)]
    for start in range(0, len(hashes), _ROWS):
        content = b"".join(hashes.slice(start, _ROWS).to_pylist())
        parts.append(np.frombuffer(content, ">u8").astype(np.uint64))
    return np.concatenate(parts)


def _keep_best(words: np.ndarray, distance: int) -> dict[int, int]:
    """{worse: better} places among hashes [clips, frames], sorted from best to worst."""
    by_word = np.lexsort(words.T)
    ordered = words[by_word]
    is_first = np.ones(len(words), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    del ordered
    first = by_word[is_first]  # of equal ones, the best
    order = np.argsort(first)
    better = np.arange(len(first))
    _settle(words[first[order]], better, distance)
    # equal hashes share the fate of the best of them
    better_of = np.empty(len(first), np.int64)
    better_of[order] = first[order][better]
    kept_instead = np.empty(len(words), np.int64)
    kept_instead[by_word] = better_of[np.cumsum(is_first) - 1]
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
    is_like = np.triu(np.ones((len(rows), len(rows)), bool), 1)
    for frame in words[rows].T:
        if is_like.any():
            is_like &= np.bitwise_count(frame[:, None] ^ frame) <= distance
    for place in np.flatnonzero(is_like.any(axis=1)).tolist():
        if better[rows[place]] == rows[place]:
            others = rows[is_like[place]]
            better[others[better[others] == others]] = rows[place]


def _match(kept: np.ndarray, new: np.ndarray, distance: int) -> np.ndarray:
    """For each row of `new`, the first of `kept` that is near it in each frame, or len(kept)."""
    kept, new = (np.ascontiguousarray(words.T) for words in (kept, new))  # [frames, clips]
    bands = np.array_split(np.arange(64, dtype=np.uint64), distance + 1)
    bands = [(band[0], len(band)) for band in bands]  # first bit, bits
    match = np.full(new.shape[1], kept.shape[1])
    todo = [(np.arange(kept.shape[1]), np.arange(new.shape[1]), tuple(range(len(kept))))]
    while todo:
        ours, theirs, frames = todo.pop()
        frame = _sharpest(kept, new, ours, theirs, frames, bands)
        if frame is None:
            whole = np.zeros(len(theirs), np.int64), np.full(len(theirs), len(ours))
            _compare(kept, new, ours, theirs, *whole, distance, match)
            continue
        rest = tuple(other for other in frames if other != frame)
        our_words, their_words = kept[frame][ours], new[frame][theirs]
        for band in bands:
            keys, wanted = _band(our_words, *band), _band(their_words, *band)
            by_key, order = (np.argsort(values, kind="stable") for values in (keys, wanted))
            low, high = _spans(keys[by_key], wanted[order])
            is_hit = high > low
            left, right, low, high = ours[by_key], theirs[order[is_hit]], low[is_hit], high[is_hit]
            starts, members = _runs(low)
            is_large = members * (high - low)[starts] > _FEW
            for start, count in zip(starts[is_large], members[is_large], strict=True):
                group = left[low[start] : high[start]], right[start : start + count]
                todo.append((*group, rest))
            is_few = np.repeat(~is_large, members)
            found = right[is_few], low[is_few], high[is_few]
            _compare(kept, new, left, *found, distance, match, first=frame)
    return match


def _sharpest(kept, new, ours, theirs, frames: Sequence[int], bands) -> int | None:
    """The frame whose bands tell most pairs apart; None if to compare all pairs is less work."""
    if len(ours) * len(theirs) <= _FEW or not frames:
        return None
    ours, theirs = (rows[:: -(-len(rows) // _SAMPLE)] for rows in (ours, theirs))
    shares = {frame: 0.0 for frame in frames}
    for frame in frames:
        one, other = kept[frame][ours], new[frame][theirs]
        for band in bands:
            values, counts = np.unique(_band(one, *band), return_counts=True)
            keys = _band(other, *band)
            at = np.minimum(np.searchsorted(values, keys), len(values) - 1)
            shares[frame] += (counts[at] * (values[at] == keys)).sum() / (len(one) * len(other))
    best = min(shares, key=shares.get)
    return best if shares[best] < 0.5 else None


def _band(words: np.ndarray, first: int, bits: int) -> np.ndarray:
    """Some bits of each word; where they are few, as a type that NumPy sorts by radix."""
    values = (words >> first) & np.uint64((1 << bits) - 1)
    return values.astype(np.uint16) if bits <= 16 else values


def _spans(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where sorted keys that equal each wanted one, which are sorted too, begin and end."""
    if keys.dtype != np.uint16:
        return tuple(np.searchsorted(keys, wanted, side) for side in ("left", "right"))
    ends = np.cumsum(np.bincount(keys, minlength=int(wanted[-1]) + 1))
    return np.append(0, ends)[wanted], ends[wanted]


def _runs(low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts and the lengths of runs of equal numbers."""
    starts = np.flatnonzero(np.diff(low, prepend=-1))
    return starts, np.diff(starts, append=len(low))


def _compare(kept, new, ours, theirs, low, high, distance: int, match, first: int = 0) -> None:
    """Compares each new clip theirs[i] with the kept ones ours[low[i]:high[i]].

    Those with the same `low` follow each other. Frame `first` is compared first.
    """
    frames = sorted(range(len(kept)), key=lambda frame: frame != first)
    starts, members = _runs(low)
    is_block = members * (high - low)[starts] >= _BLOCK
    for start, count in zip(starts[is_block].tolist(), members[is_block].tolist(), strict=True):
        left, right = ours[low[start] : high[start]], theirs[start : start + count]
        _compare_all(kept, new, left, right, frames, distance, match)
    is_rest = np.repeat(~is_block, members)
    theirs, low, high = theirs[is_rest], low[is_rest], high[is_rest]
    ends = np.cumsum(high - low)
    start = 0
    while start < len(theirs):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, "right")))
        part, start = slice(start, stop), stop
        counts = high[part] - low[part]
        first = np.cumsum(counts) - counts
        pair = np.arange(counts.sum()) + np.repeat(low[part] - first, counts)
        pairs = ours[pair], np.repeat(theirs[part], counts)
        _note(kept, new, *pairs, frames, distance, match)


def _compare_all(kept, new, ours, theirs, frames, distance: int, match) -> None:
    """Compares each new clip of `theirs` with each kept one of `ours`, a matrix at a time."""
    rows = max(1, _IN_CACHE // len(ours))
    one, other = kept[frames[0]][ours], new[frames[0]][theirs]
    for start in range(0, len(theirs), rows):
        differ = np.bitwise_count(other[start : start + rows, None] ^ one)
        if differ.min() > distance:
            continue
        right, left = divmod(np.flatnonzero(differ <= distance), len(ours))
        _note(kept, new, ours[left], theirs[start + right], frames[1:], distance, match)


def _note(kept, new, left, right, frames, distance: int, match) -> None:
    """Writes the pairs that are near in these frames into `match`."""
    for frame in frames:
        if not len(left):
            return
        close = np.bitwise_count(kept[frame][left] ^ new[frame][right]) <= distance
        left, right = left[close], right[close]
    np.minimum.at(match, right, left)
