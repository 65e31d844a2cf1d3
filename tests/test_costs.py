"""The hours that docs/prepare_data.md promises follow from what was measured."""

import json

from tests import measure_prepare, processes

MEASURED = processes.ROOT / "docs" / "benchmarks" / "prepare_data.json"


def test_the_table_of_costs_is_that_of_the_measurement():
    result = json.loads(MEASURED.read_text())
    text = (processes.ROOT / "docs" / "prepare_data.md").read_text()
    rows = measure_prepare.cost_rows(result)
    assert len(rows) == 6 and all(row in text for row in rows), "\n".join(rows)


def test_a_cost_is_bytes_times_seconds():
    clip = {"bytes": 10**9, "cpu_seconds": {"check": 100, "check_and_scores": 200, "copy": 7}}
    result = {"720p": clip, "1080p": clip} | {
        name: {"bytes": 10**9, "cpu_seconds": 3.6} for name in ("download", "shards")
    }
    rows = measure_prepare.cost_rows(result)
    assert rows[0] == "| download, core-hours | 3.6 s a GB | 7.9 | 29 |"
    assert rows[1].endswith("| 7.0 s a GB | - | 56 |")
    assert rows[3].endswith("| 200 s a GB | 440 | 1,610 |")
    assert rows[5] == "| the last two on 64 cores | | 7.0 h | 26 h |"
