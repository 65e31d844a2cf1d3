"""Every second of a run stands in one class, over all its starts."""

import json

import pytest

from vidgen.training import goodput


def start(folder, process, began, lines, host="a", **first):
    (folder / "ledger").mkdir(exist_ok=True)
    head = {"at": 0.0, "step": 0, "spent": {}, "started": began, "process": process, "host": host}
    text = "".join(json.dumps(line) + "\n" for line in [head | first, *lines])
    (folder / "ledger" / f"{began:.0f}-{process}.jsonl").write_text(text)


def line(at, step, phase="step", /, **spent):
    facts = {name: spent.pop(name) for name in ("hang", "end", "goes_on_from") if name in spent}
    return {"at": at, "step": step, "phase": phase, "spent": spent, **facts}


@pytest.fixture
def folder(tmp_path):
    start(
        tmp_path,
        0,
        1000.0,
        [
            line(10, 0, start=8, restore=2, goes_on_from=0),
            line(40, 10, data=5, step=20, save=5),
            line(60, 20, data=4, step=16),  # killed after step 20, with a checkpoint of 10
        ],
    )
    start(
        tmp_path,
        0,
        1070.0,
        [
            line(10, 10, start=8, restore=2, goes_on_from=10),
            line(30, 20, data=4, step=16),
            line(50, 22, "data", step=4, data=16, hang=15.0),
        ],
    )
    start(
        tmp_path,
        0,
        1130.0,
        [line(10, 22, start=10, goes_on_from=22), line(20, 30, step=9, close=1, end=0)],
    )
    return tmp_path


def test_classes_add_up_to_the_time_between_begin_and_end(folder):
    (starts,) = goodput.read(folder).values()
    found = goodput.classes(starts)
    assert sum(found.values()) == pytest.approx(1150 - 1000)
    assert found["recomputed"] == pytest.approx(20)  # steps 11 to 20 of the first start
    assert found["hang"] == 15 and found["down"] == 10 + 10
    assert found["step"] == 20 + 16 + 4 + 9 and found["data"] == 5 + 4 + 1
    assert [s.code for s in starts] == [None, 76, 0]


def test_the_table_says_how_each_start_ended(folder):
    text = goodput.describe(folder)
    assert "start 1: steps 0 to 20, 60.0 s, killed, or still running" in text
    assert "start 2: steps 10 to 22, 50.0 s, ended with 76 (no progress within a limit)" in text
    assert "start 3: steps 22 to 30" in text and "ended with 0 (all steps are done" in text
    assert "32.67% of the time brought the run forward." in text


def test_a_process_that_waits_longer_for_data_is_named(tmp_path):
    for process in range(4):
        data = 30 if process == 2 else 10
        lines = [line(150, 100, data=data, step=150 - data, end=0)]
        start(tmp_path, process, 1000.0, lines, host=f"host{process}")
    (told,) = goodput.stragglers(goodput.read(tmp_path))
    assert "process 2 on host2 spent 30.0 s in data" in told


def test_a_line_that_is_cut_short_is_left_out(folder):
    path = next((folder / "ledger").glob("1130*"))
    path.write_text(path.read_text() + '{"at": 25, "st')
    (starts,) = goodput.read(folder).values()
    assert sum(goodput.classes(starts).values()) == pytest.approx(150)


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no ledger: give the --workdir of a run"):
        goodput.describe(tmp_path)


def test_a_start_that_restored_nothing_and_an_older_checkpoint_are_reckoned_with(tmp_path):
    start(tmp_path, 0, 1000.0, [line(10, 0, start=10, goes_on_from=0), line(110, 10, step=100)])
    start(tmp_path, 0, 1200.0, [line(20, 0, "restore", start=20)])  # which it did not survive
    start(tmp_path, 0, 1300.0, [line(10, 5, start=10, goes_on_from=5), line(30, 7, step=20)])
    start(tmp_path, 0, 1400.0, [line(10, 2, start=10, goes_on_from=2), line(90, 10, step=80)])
    (starts,) = goodput.read(tmp_path).values()
    found = goodput.classes(starts)
    assert found["recomputed"] == pytest.approx(80 + 20)  # steps 3 to 10, and 6 and 7 once more
    assert sum(found.values()) == pytest.approx(490)


def test_a_process_of_some_starts_alone_does_not_count_as_down_in_the_others(folder):
    start(folder, 1, 1130.0, [line(10, 22, start=10, goes_on_from=22), line(20, 30, step=10)])
    told = goodput.describe(folder)
    (row,) = (text.split() for text in told.splitlines() if text.startswith("down"))
    assert row[1:] == ["20.0", "13.33%"]


def test_a_run_knows_its_classes_while_it_goes_on(folder):
    whole = goodput.classes(goodput.read(folder)[0])
    last = {"start": 10.0, "step": 9.0, "close": 1.0}
    account = goodput.Account(folder, lambda: last)
    assert account.shares() == pytest.approx({name: s / 150 for name, s in whole.items()})
    assert next(iter(account.shares())) == "step"
    assert account.describe().startswith("0:02:30 in 3 starts: step 32.7%, start 17.3%")
