import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from configs import data
from data_pipelines.stages import growth, ledger, plan, rules, select
from tests import measure_select


@pytest.fixture(scope="module")
def plain():
    config = data.get_config()
    config.dedup.exact = True
    config.rules = ("given.a >= 2 or given.a is None", "given.t != '3'", "words >= 4")
    return plan.check(config, {"a", "t"})


@pytest.fixture(scope="module")
def rows(plain, tmp_path_factory):
    """Among them: copies, look-alikes, no captions, and words that are numbers but in the end."""
    path, count = tmp_path_factory.mktemp("rows") / "rows.parquet", 3_000
    measure_select.write_rows(path, count, 200, plain)
    rows = pyarrow.parquet.read_table(path, columns=ledger.SCHEMA.names)
    said = ({"a": float(i % 7), "t": i % 5 if i < 2_900 else "x"} for i in range(count))
    given = [json.dumps(one) if i % 3 else None for i, one in enumerate(said)]
    place = ledger.SCHEMA.names.index("given")
    rows = rows.set_column(place, ledger.SCHEMA.field("given"), pa.array(given))
    again = pa.compute.binary_join_element_wise(rows["id"], "again", "-")
    again = rows.set_column(0, ledger.SCHEMA.field("id"), again).slice(0, 300)
    rows = pa.concat_tables([rows, again])
    return rows.take(pa.array(np.random.default_rng(0).permutation(len(rows))))


def test_the_verdicts_are_the_same_in_blocks_of_any_size(rows, plain, tmp_path, monkeypatch):
    before, wanted = growth.Before(tmp_path / "none"), None
    for size in (1 << 14, 1_000, 7):
        monkeypatch.setattr(ledger, "ROWS_AT_ONCE", size)
        found, stays = before.compare(select.select(rows, plain, quiet=True), plain["shards"])
        wanted = wanted or found
        assert found.equals(wanted) and not len(stays)
    counts = ledger.counts(found)
    assert {"damaged", "no caption", "duplicate", "near duplicate", "given.t != '3'"} < {*counts}
    assert min(counts.values()) > 1, counts


def test_a_ledger_with_more_than_2_gib_of_text_has_verdicts(plain, monkeypatch):
    """The texts are one MiB, 2,112 times; the memory holds it 64 times."""
    count, times = 64, 33
    rows = [{"id": str(i), "text": "a red car " * 105_000, "kind": "video"} for i in range(count)]
    rows = pa.concat_tables([ledger.table(rows)] * times)
    score = np.zeros(len(rows), np.float32)
    score[[5, 2_111]] = 1.0
    place = ledger.SCHEMA.names.index("motion")
    rows = rows.set_column(place, ledger.SCHEMA.field("motion"), pa.array(score))
    everything = pa.array(np.arange(len(rows)))
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        rows.take(everything)
    monkeypatch.setattr(ledger, "ROWS_AT_ONCE", 64)
    plain = plain | {"rules": ("motion > 0.5",), "dedup": {"exact": False, "near": -1}}
    found = select.select(rows, plain, quiet=True)
    assert np.flatnonzero(pa.compute.equal(found["status"], "kept").to_numpy()).tolist() == [
        5,
        2111,
    ]
    assert found["message"][0].as_py() == "motion is 0."
    assert ledger.take(rows, [2_111, 5])["id"].to_pylist() == ["63", "5"]
    verdicts = rules.apply(rules.parse(["motion > 0.5"]), rows)
    assert sum(verdict is None for verdict in verdicts) == 2
