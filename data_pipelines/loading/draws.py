"""First numbers of many NumPy generators at once, to the last bit.

`np.random.default_rng(seed)` takes 10 us to make, most of it to spread the seed. Here both its
steps run over arrays of seeds: the SeedSequence of NumPy (numpy/random/bit_generator.pyx, after
M. E. O'Neill, "Developing a seed_seq alternative", 2015) and her PCG64 (PCG-XSL-RR-128/64, "PCG: a
family of simple fast space-efficient statistically good algorithms for random number generation",
2014). NumPy promises that the streams of both stay as they are.
"""

import itertools
from collections.abc import Iterator

import numpy as np

# of SeedSequence: hashing words into the pool of four, mixing the pool, hashing words out of it
_IN, _IN_STEP = 0x43B0D7E5, 0x931E8875
_LEFT, _RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_OUT, _OUT_STEP = 0x8B51F9DD, 0x58F38DED
_SHIFT = np.uint32(16)
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 1 << 14  # seeds at once: all arrays stay in the processor's cache


def random(seeds_N: np.ndarray, turn: int) -> np.ndarray:
    """Returns `np.random.default_rng(seed).random(turn + 1)[turn]` of each seed.

    Args:
        seeds_N: uint64.
        turn: Which number of each generator, from 0.

    Returns:
        float64 in [0, 1).
    """
    result_N = np.empty(len(seeds_N), np.float64)
    for start in range(0, len(seeds_N), _BLOCK):
        part = slice(start, start + _BLOCK)
        bits_N = _pcg64(_spread(seeds_N[part]), turn)
        result_N[part] = (bits_N >> np.uint64(11)) * 2.0**-53
    return result_N


def _spread(seeds_N: np.ndarray) -> list[np.ndarray]:
    """Returns `SeedSequence(seed).generate_state(4, np.uint64)` of each seed, four arrays."""
    pairs = _pairs(_IN, _IN_STEP)
    zero_1 = np.zeros(1, np.uint32)  # words that a seed does not have are hashed as 0
    words = [(seeds_N & _LOW).astype(np.uint32), (seeds_N >> _HALF).astype(np.uint32)]
    pool = [_hash(word_N, next(pairs)) for word_N in (*words, zero_1, zero_1)]
    for source, target in itertools.permutations(range(4), 2):
        mixed_N = pool[target] * _LEFT - _hash(pool[source], next(pairs)) * _RIGHT
        pool[target] = mixed_N ^ (mixed_N >> _SHIFT)
    pairs = _pairs(_OUT, _OUT_STEP)
    out = [_hash(pool[i % 4], next(pairs)).astype(np.uint64) for i in range(8)]
    return [out[i] | (out[i + 1] << _HALF) for i in range(0, 8, 2)]


def _pairs(value: int, step: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """The two constants of each hash in turn; the second is the first of the next."""
    while True:
        following = value * step % 2**32
        yield np.uint32(value), np.uint32(following)
        value = following


def _hash(word_N: np.ndarray, pair: tuple[np.uint32, np.uint32]) -> np.ndarray:
    word_N = word_N ^ pair[0]
    word_N *= pair[1]
    word_N ^= word_N >> _SHIFT
    return word_N


def _pcg64(state: list[np.ndarray], turn: int) -> np.ndarray:
    """Returns the output of PCG64 after `turn` others; `state` is start and increment, high first.

    The n-th state is start * m**(n + 2) + increment * (1 + m + ... + m**(n + 2)) modulo 2**128, as
    seeding takes two steps and each output one.
    """
    start_high, start_low, high, low = state
    high = (high << np.uint64(1)) | (low >> np.uint64(63))
    low = (low << np.uint64(1)) | np.uint64(1)
    powers = [pow(_MULTIPLIER, n, 2**128) for n in range(turn + 3)]
    high, low = _times(high, low, sum(powers) % 2**128)
    start_high, start_low = _times(start_high, start_low, powers[-1])
    low += start_low
    high += start_high
    high += low < start_low  # the carry
    mixed, turned = high ^ low, high >> np.uint64(58)
    return (mixed >> turned) | (mixed << (-turned & np.uint64(63)))


def _times(high_N: np.ndarray, low_N: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (high, low) of a product modulo 2**128."""
    top, bottom = np.uint64(factor >> 64), np.uint64(factor % 2**64)
    a, b = low_N >> _HALF, low_N & _LOW
    c, d = bottom >> _HALF, bottom & _LOW
    right, cross = b * d, b * c
    middle = (right >> _HALF) + (cross & _LOW) + a * d
    carried = a * c + (cross >> _HALF) + (middle >> _HALF)
    return carried + low_N * top + high_N * bottom, low_N * bottom
