import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipelines.stages import ledger

ROWS = [
    {"id": "a.mp4", "source": "csv", "status": "kept", "motion": 0.25, "phash": b"12345678"},
    {"id": "b.mp4", "source": "csv", "status": "left out", "rule": "damaged", "num_frames": 7},
]


def test_rows_come_back_with_null_where_nothing_was_said(tmp_path):
    ledger.write(tmp_path / "l.parquet", ROWS)
    table = ledger.read(tmp_path / "l.parquet")
    assert table.schema.equals(ledger.SCHEMA)
    for row, wanted in zip(table.to_pylist(), ROWS, strict=True):
        assert {k: v for k, v in row.items() if v is not None} == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["l.parquet"]


def test_equal_rows_give_equal_bytes_and_a_folder_is_read_too(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ledger.write(tmp_path / name / ledger.NAME, ROWS)
    one, two = ((tmp_path / name / ledger.NAME).read_bytes() for name in ("one", "two"))
    assert one == two
    assert ledger.read(tmp_path / "one").num_rows == 2


def test_what_a_stranger_wrote_into_a_clip_can_be_stored(tmp_path):
    row = {"id": "x", "text": "\ud800 half\x00\x1b \U0001f600", "caption": "x" * 10_000_000}
    row |= {"fps": float("inf"), "motion": np.float32("nan"), "num_frames": 1 << 40}
    ledger.write(tmp_path / "l.parquet", [row])
    (back,) = ledger.read(tmp_path / "l.parquet").to_pylist()
    assert back["text"] == "\ufffd half\x00\x1b \U0001f600" and len(back["caption"]) == 10_000_000
    assert back["fps"] is back["motion"] is back["num_frames"] is None


def test_a_misspelled_column_is_named():
    with pytest.raises(ValueError, match="no column mootion; it has id, source"):
        ledger.table([{"id": "a", "mootion": 1.0}])


def test_what_is_no_ledger_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ledger\.parquet is no ledger"):
        ledger.read(tmp_path)
    pyarrow.parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match="has no column source, file"):
        ledger.read(tmp_path / "l.parquet")
    ledger.write(tmp_path / "l.parquet", ROWS)
    content = (tmp_path / "l.parquet").read_bytes()
    (tmp_path / "l.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no ledger"):
        ledger.read(tmp_path / "l.parquet")


def test_merged_ledgers_hold_each_clip_once_as_last_seen(tmp_path):
    scenes = [{"id": f"b.mp4#00{i}", "parent": "b.mp4", "source": "csv"} for i in (0, 1)]
    other = {"id": "a.mp4", "source": "folder"}  # the same id in another data set
    ledger.write(tmp_path / "1", ROWS)
    ledger.write(tmp_path / "2", [other, *scenes])
    assert ledger.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out") == 4
    rows = ledger.read(tmp_path / "out").to_pylist()
    assert [(row["source"], row["id"]) for row in rows] == [
        ("csv", "a.mp4"),
        ("csv", "b.mp4#000"),
        ("csv", "b.mp4#001"),
        ("folder", "a.mp4"),
    ]


def test_counts_say_how_many_clips_each_rule_left_out():
    rows = [*ROWS, {"id": "c", "status": "left out", "rule": "damaged"}]
    rows += [{"id": "d", "status": "left out", "rule": "motion >= 0.1"}]
    assert ledger.counts(ledger.table(rows)) == {"damaged": 2, "motion >= 0.1": 1}


def test_rows_are_taken_in_any_order_as_arrow_takes_them(monkeypatch):
    monkeypatch.setattr(ledger, "ROWS_AT_ONCE", 4)
    parts = [
        ledger.table([{"id": f"{part}.{row}", "phash": bytes(row), "fps": row} for row in range(n)])
        for part, n in enumerate((3, 0, 5, 2))
    ]
    whole = pa.concat_tables(parts)
    for numbers in ([], [9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 7, 0, 9, 3, 2, 2, 1, 0, 8, 5]):
        assert ledger.take(whole, numbers).equals(whole.take(pa.array(numbers, pa.int64())))
    assert [len(block) for block in ledger.blocks(whole)] == [4, 4, 2]
