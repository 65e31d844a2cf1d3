import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.stages import dedup


def near(hashes, distance, *, ids, **facts):
    column = pa.chunked_array([ids[:3], ids[3:]], pa.string())
    return dedup.near(pa.chunked_array([hashes], pa.binary()), distance, ids=column, **facts)


def bits(one, other):
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def clips(rng, n, frames, distance):
    """Hashes with many near ones: half of them are others with a few bits turned."""
    words = rng.integers(0, 1 << 63, (n, frames)).astype(np.uint64)
    words[n // 4 : n // 2] = words[: n // 4]  # equal ones
    words[n // 2 :] = words[rng.integers(0, n // 8, n - n // 2)]
    for _ in range(distance):
        turned = np.uint64(1) << rng.integers(0, 64, (n - n // 2, frames)).astype(np.uint64)
        words[n // 2 :] ^= turned * (rng.random((n - n // 2, frames)) < 0.6)
    hashes = [row.astype(">u8").tobytes() for row in words[rng.permutation(n)]]
    facts = {"pixels": rng.integers(1, 4, n).tolist(), "seconds": rng.integers(1, 4, n).tolist()}
    return hashes, facts | {"ids": [f"{i:04d}" for i in rng.permutation(n)]}


def by_comparing_all(hashes, distance, pixels, seconds, ids):
    """The definition, read literally."""
    frames = lambda row: [hashes[row][i : i + 8] for i in range(0, len(hashes[row]), 8)]
    alike = lambda a, b: all(map(lambda x, y: bits(x, y) <= distance, frames(a), frames(b)))
    rows = sorted(range(len(ids)), key=lambda row: (-pixels[row], -seconds[row], ids[row]))
    kept, instead = [], {}
    for row in rows:
        better = [other for other in kept if alike(row, other)]
        if better:
            instead[row] = better[0]
        else:
            kept.append(row)
    return instead


@pytest.mark.parametrize("block", [1, 5, 1 << 20])  # pairs that are compared as a matrix
@pytest.mark.parametrize("small", [512, 4])  # 4: groups are split as those of a million clips are
@pytest.mark.parametrize(("frames", "distance"), [(1, 0), (1, 5), (3, 3), (4, 6)])
def test_the_search_finds_what_comparing_all_pairs_finds(
    frames, distance, small, block, monkeypatch
):
    monkeypatch.setattr(dedup, "_SMALL", small)
    monkeypatch.setattr(dedup, "_FEW", small)
    monkeypatch.setattr(dedup, "_AT_ONCE", small)
    monkeypatch.setattr(dedup, "_BLOCK", block)
    monkeypatch.setattr(dedup, "_IN_CACHE", 7)
    hashes, facts = clips(np.random.default_rng(distance), 160, frames, distance)
    found = near(hashes, distance, **facts)
    assert found == by_comparing_all(hashes, distance, **facts)
    assert len(found) > 30


def test_of_two_the_larger_then_the_longer_then_the_first_is_kept():
    same = {"hashes": [b"12345678"] * 3, "distance": 0, "ids": ["b", "a", "c"]}
    assert near(**same, pixels=[1, 1, 2], seconds=[9, 9, 1]) == {0: 2, 1: 2}
    assert near(**same, pixels=[1, 1, 1], seconds=[1, 2, 1]) == {0: 1, 2: 1}
    assert near(**same, pixels=[1, 1, 1], seconds=[1, 1, 1]) == {0: 1, 2: 1}


def test_likeness_is_not_handed_on_along_a_chain():
    chain = [bytes(7) + bytes([value]) for value in (0b0, 0b11, 0b1111, 0b111111)]
    found = near(chain, 2, pixels=[4, 3, 2, 1], seconds=[1] * 4, ids=list("abcd"))
    assert found == {1: 0, 3: 2}  # c is 4 bits from a, and b is not there any more


def test_clips_without_hashes_or_of_other_lengths_are_never_alike():
    hashes = [None, None, b"", b"", bytes(8), bytes(16)]
    assert near(hashes, 32, pixels=[1] * 6, seconds=[1] * 6, ids=list("abcdef")) == {}
    with pytest.raises(ValueError, match="distance=33"):
        near(hashes, 33, pixels=[1] * 6, seconds=[1] * 6, ids=list("abcdef"))
    with pytest.raises(ValueError, match="clip 'a' has a hash of 7 bytes"):
        near([bytes(7)], 3, pixels=[1], seconds=[1], ids=["a"])


def test_a_black_corner_of_the_web_is_no_quadratic_wait():
    rng = np.random.default_rng(0)
    n = 60_000
    words = np.zeros((n, 4), np.uint64)  # most clips black, the others black but for one frame
    words[: n // 3, 3] = rng.integers(0, 1 << 63, n // 3).astype(np.uint64)
    hashes = [row.astype(">u8").tobytes() for row in words]
    facts = {"pixels": [1] * n, "seconds": [1] * n, "ids": [f"{i:06d}" for i in range(n)]}
    assert len(near(hashes, 4, **facts)) >= 2 * n // 3 - 1


@pytest.mark.parametrize("n", [2_000, 8_000])
def test_look_alikes_are_compared_with_what_is_kept_alone(n, monkeypatch):
    """A lecture in pieces: all within three bits of one, and so within six of each other."""
    rng, compared = np.random.default_rng(0), []
    words = np.full((n, 4), 0x0F0F_3355_1234_ABCD, np.uint64)
    for _ in range(3):
        words ^= np.uint64(1) << rng.integers(0, 64, words.shape).astype(np.uint64)
    compare = dedup._compare

    def counted(kept, new, ours, theirs, low, high, *rest):
        compared.append((high - low).sum())
        return compare(kept, new, ours, theirs, low, high, *rest)

    monkeypatch.setattr(dedup, "_compare", counted)
    hashes = [row.astype(">u8").tobytes() for row in words]
    facts = {"pixels": [1] * n, "seconds": [1] * n, "ids": [f"{i:06d}" for i in range(n)]}
    assert len(near(hashes, 8, **facts)) == n - 1
    assert sum(compared) <= n


def test_equal_keys_keep_the_smallest_id():
    ids = pa.chunked_array([list("cd"), list("abef")])
    assert dedup.exact([[1, 2, 1, 3, 4, 1], [0] * 6], ids) == {0: 2, 5: 2}
    assert dedup.exact([[1, 2, 1, 3, 4, 1], [0, 0, 1, 0, 0, 0]], ids) == {5: 0}
    assert dedup.exact([[1, 1]], pa.chunked_array([["a", "a"]])) == {1: 0}
    assert dedup.exact([[]], pa.chunked_array([[]], pa.string())) == {}
