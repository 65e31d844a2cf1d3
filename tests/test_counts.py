import numpy as np
import pytest

from data_pipelines.loading import counts

ROWS = {0: [3, 0, 5], 1: [2, 2, 4], 5: [9, 0, 0]}


@pytest.fixture
def path(tmp_path):
    made = counts.Counts(tmp_path / "counts.txt", "run")
    made.write()
    made.update({epoch: np.array(rows) for epoch, rows in ROWS.items()})
    return tmp_path / "counts.txt"


def read(path, key="run"):
    return {epoch: rows.tolist() for epoch, rows in counts.Counts(path, key).items()}


def test_counts_come_back(path):
    assert read(path) == ROWS
    assert counts.Counts(path, "run")[1].dtype == np.int64


def test_counts_of_another_run_are_none(path):
    assert read(path, "other") == {}
    other = counts.Counts(path, "other")
    other[0] = np.array([1, 1, 1])
    other.write()
    assert read(path, "other") == {0: [1, 1, 1]} and read(path) == ROWS


def test_every_damaged_byte_loses_one_epoch_at_most(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 5]) + whole[place + 1 :])
        found = read(path)
        assert found.items() <= ROWS.items() and len(found) >= 2


def test_a_line_that_was_cut_is_counted_again(path):
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = counts.Counts(path, "run")
        for epoch in ROWS.keys() - found.keys():
            found[epoch] = np.array(ROWS[epoch])
        found.write()
        assert read(path) == ROWS


def test_nothing_is_written_before_it_is_asked_for(tmp_path):
    made = counts.Counts(tmp_path / "counts.txt", "run")
    made[0] = np.array([1, 2])
    assert not list(tmp_path.iterdir())
    made.write()
    assert read(tmp_path / "counts.txt") == {0: [1, 2]}


@pytest.mark.parametrize("name", ["folder", "missing/counts.txt"])
def test_a_file_that_cannot_be_used_is_a_warning(name, tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    made = counts.Counts(tmp_path / name, "run")
    made.write()
    made[0] = np.array([1, 2])
    assert made[0].tolist() == [1, 2]
    assert "counts of epochs are not kept" in caplog.text
