import gc

import jax
import numpy as np
import pytest

from data_pipelines.loading import padded


def fill(pool: padded.Pool, lengths, value=1.0, shape=(6, 4)) -> np.ndarray:
    """An array whose rows hold `value` up to these lengths."""
    memory = pool.take(len(lengths), *shape)
    for row, length in enumerate(lengths):
        memory.put(row, np.full((length, shape[1]), value, np.float16))
    return pool.lend(memory, len(lengths))


def expected(lengths, value=1.0, shape=(6, 4)) -> np.ndarray:
    array = np.zeros((len(lengths), *shape), np.float16)
    for row, length in enumerate(lengths):
        array[row, :length] = value
    return array


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_used_memory_shows_nothing_of_the_array_before():
    pool = padded.Pool()
    lengths = [6, 0, 3, 5]
    array = fill(pool, lengths, 7)
    first = address(array)
    for lengths in ([2, 6, 3], [0, 0, 0, 0], [1, 2, 3, 4], [6, 6, 6, 6], [5]):
        np.testing.assert_array_equal(array, expected([6, 0, 3, 5], 7))
        del array
        array = fill(pool, lengths)
        assert address(array) == first
        np.testing.assert_array_equal(array, expected(lengths))
        del array
        array = fill(pool, [6, 0, 3, 5], 7)  # noqa: F841 (looked at in the next round)


def test_memory_that_something_looks_into_stays_as_it_is():
    pool = padded.Pool()
    array = fill(pool, [6, 6], 7)
    for look in (
        lambda array: array[1:, 2:],
        lambda array: array.reshape(-1).view(np.uint16)[5:],
        memoryview,
        lambda array: np.asarray(array).T,
    ):
        view = look(array)
        kept, was = np.array(view), address(array)
        del array
        other = fill(pool, [3, 3])
        assert address(other) != was
        np.testing.assert_array_equal(np.array(view), kept)
        del view
        array = fill(pool, [6, 6], 7)  # noqa: F841 (used in the next round)


def test_a_device_array_that_shares_the_memory_stays_as_it_is():
    pool, memory = padded.Pool(), padded.Rows(2, 64, 16)
    aligned = np.zeros(memory.values.nbytes + 64, np.uint8)  # else JAX copies
    aligned = aligned[-address(aligned) % 64 :][: memory.values.nbytes]
    memory.values = aligned.view(np.float16).reshape(memory.values.shape)
    for row in range(2):
        memory.put(row, np.full((60, 16), 7, np.float16))
    array = jax.device_put(pool.lend(memory, 2))
    assert array.unsafe_buffer_pointer() == address(aligned)
    other = fill(pool, [60, 60], 1, shape=(64, 16))
    np.testing.assert_array_equal(array, expected([60, 60], 7, shape=(64, 16)))
    del array
    jax.block_until_ready(jax.device_put(0.0))  # JAX lets go of arrays with its next work
    gc.collect()
    assert address(fill(pool, [2, 3], shape=(64, 16))) == address(aligned) != address(other)


def test_one_reading_cannot_change_what_another_gets():
    array = fill(padded.Pool(), [2])
    with pytest.raises(ValueError, match="read-only"):
        array[0, 5] = 1


def test_few_pieces_of_idle_memory_are_kept_and_the_smallest_that_fits_is_taken():
    pool = padded.Pool()
    arrays = [fill(pool, [1] * rows) for rows in range(1, 9)]
    places = {len(array): address(array) for array in arrays}
    del arrays
    gc.collect()
    again = fill(pool, [1] * 6)
    assert address(again) == places[6]
    assert address(fill(pool, [1] * 2)) == places[5]  # those of 1 to 4 rows are gone
    assert fill(pool, [1] * 2, shape=(6, 8)).shape == (2, 6, 8)
    assert address(fill(pool, [1] * 9)) not in places.values()
