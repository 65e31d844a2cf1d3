"""CSV files as people write them: quotes that are never closed, more cells than the header."""

import csv

import pytest

from data_pipelines.sources import csv_records, specs
from tests import data_sets


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", "deep/b.mp4", "c.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_quote_left_open_is_a_verdict_on_its_row(folder):
    lines = ["path,text", "a.mp4,fine", 'deep/b.mp4,"open', *(f"c{i}.mp4,x" for i in range(5000))]
    (folder / "t.csv").write_text("\n".join(lines))
    table = specs.read(folder / "t.csv")
    assert data_sets.reasons(table) == ["", "open quote"] + ["missing file"] * 5000
    assert (
        table[1].id == "deep/b.mp4-row-000002"
        and "double the quotes in it" in table[1].given["refused"]
    )
    assert csv.field_size_limit() == 131072  # as it was


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        # closed by the next row's own quote, in the middle of a cell
        (['a.mp4,"one', 'deep/b.mp4,"two, three"', "c.png,four"], [None, "two, three", "four"]),
        # at the end of a cell: looks like a caption of two lines
        (['a.mp4,"one', 'deep/b.mp4,two"', "c.png,four"], [None, 'two"', "four"]),
        (['a.mp4,"one', 'deep/b.mp4,""', 'c.png,"four"'], [None, None, "four"]),
        # never
        (["c.png,one", 'a.mp4,"two', "deep/b.mp4,three"], ["one", None, "three"]),
        (["c.png,one", 'a.mp4,"two'], ["one", None]),
        # meant so
        (
            ['a.mp4,"one', "and the second line", 'x,y"', "c.png,two"],
            ["one and the second line x,y", "two"],
        ),
        (['a.mp4,"a ""red"" car, fast"', "c.png,two"], ['a "red" car, fast', "two"]),
        (['a.mp4,a 6" pipe', 'c.png,"a" small dog'], ['a 6" pipe', "a small dog"]),
    ],
)
def test_an_open_quote_takes_no_other_row_with_it(lines, wanted, folder):
    for end in ("\n", "\r\n"):
        (folder / "t.csv").write_bytes(end.join(["path,text", *lines, ""]).encode())
        table = specs.read(folder / "t.csv")
        assert [clip.text for clip in table] == wanted
        verdicts = ["" if text else "open quote" for text in wanted]
        if lines[1] == 'deep/b.mp4,""':
            verdicts[1] = ""
        assert data_sets.reasons(table) == verdicts


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (['"line one', 'line two",a.mp4', "next,c.png"], {"a.mp4": "line one line two"}),
        (
            ['"one', "two, three", 'four, five",a.mp4', "next,c.png"],
            {"a.mp4": "one two, three four, five"},
        ),
        (['"open,a.mp4', '"shut",deep/b.mp4', "next,c.png"], {"deep/b.mp4": "shut"}),
    ],
)
def test_captions_may_stand_before_paths(lines, wanted, folder):
    (folder / "t.csv").write_text("\n".join(["text,path", *lines]) + "\n")
    table = {clip.id: clip.text for clip in specs.read(folder / "t.csv") if clip.text}
    assert table == wanted | {"c.png": "next"}


def test_a_row_that_was_mended_further_down_has_its_id(folder):
    (folder / "t.csv").write_text('path,text\na.mp4,"open\nc.png,two\na.mp4,good\n')
    table = specs.read(folder / "t.csv")
    assert [clip.id for clip in table] == ["a.mp4-row-000001", "c.png", "a.mp4"]
    assert data_sets.reasons(table) == ["open quote", "", ""]


def test_an_open_quote_in_the_path_is_told_as_such(folder):
    (folder / "t.csv").write_text('path,text\n"a.mp4,hello\nc.png,two\n')
    assert data_sets.reasons(specs.read(folder / "t.csv")) == ["open quote", ""]


def test_quotes_that_swallow_each_other_cost_no_square(folder, monkeypatch):
    """Each line closes the quote of the line before and opens another."""
    taken, next_line = [], csv_records._Lines.__next__

    def counted(lines):
        taken.append(1)
        return next_line(lines)

    monkeypatch.setattr(csv_records._Lines, "__next__", counted)
    (folder / "t.csv").write_text("path,text\n" + 'a.mp4",x,"foo\n' * 3000)
    assert len(specs.read(folder / "t.csv")) == 3000
    assert len(taken) <= 3001 * (csv_records._MOST_LINES + 2)


@pytest.mark.parametrize(
    "extra", ["a red car, fast,30", "a red car, fast", 'x,"y, z",30,', "x,1,2,,3"]
)
def test_a_row_with_more_cells_than_the_header_is_refused_by_name(extra, folder):
    columns = 2 + extra.endswith("30") + (extra[0] == "x")
    header = ",".join(["path", "text", "fps", "size"][:columns])
    (folder / "t.csv").write_text(f"{header}\na.mp4,{extra}\nc.png,plain,\n")
    table = specs.read(folder / "t.csv")
    wanted = "more cells" if columns < 4 or extra.startswith("x,1") else ""
    assert data_sets.reasons(table) == [wanted, ""]
    assert [clip.id for clip in table] == ["a.mp4" + "-row-000001" * bool(wanted), "c.png"]


def test_short_long_and_blank_lines_of_a_csv_do_no_harm(folder):
    (folder / "t.csv").write_text("\ufeffpath,text,score\na.mp4\n\n\nc.png,x,1,2,3\n,,\n")
    table = specs.read(folder / "t.csv")
    assert data_sets.reasons(table) == ["", "more cells", "missing path"]
    assert (table[0].text, table[1].id) == (None, "c.png-row-000002")
