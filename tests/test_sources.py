"""Every source ends in one clip table, and no row of it ends in a crash."""

import csv
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipelines.media import encoding, video_io
from data_pipelines.sources import clips, specs
from tests import data_sets

HOSTILE = {  # path or id -> the reason that its row is refused for
    "../outside.mp4": "outside root",
    "deep/../../outside.mp4": "outside root",
    "/etc/passwd": "outside root",
    "http://example.com/a.mp4": "outside root",
    "zip://a.mp4::/etc/x.zip": "outside root",
    "tar:/etc/passwd#0+10": "outside root",
    "link.mp4": "outside root",
    "linked/outside.mp4": "outside root",
    "": "missing path",
    "  ": "bad path",
    "a\x00.mp4": "bad path",
    "a\n.mp4": "bad path",
    "a\udc80.mp4": "bad path",
    "deep": "not a file",
    "pipe.mp4": "not a file",
    "none.mp4": "missing file",
    "a.mp4/b.mp4": "unreadable",
    "x" * 300 + ".mp4": "unreadable",
}


@pytest.fixture
def folder(tmp_path):
    """A folder `data` with clips and traps, and a file outside of it."""
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4", "c.png"):
        (data / name).write_bytes(name.encode())
    (tmp_path / "outside.mp4").write_bytes(b"secret")
    (data / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (data / "inner.mp4").symlink_to(data / "a.mp4")
    (data / "linked").symlink_to(tmp_path)
    os.mkfifo(data / "pipe.mp4")
    return data


def write(path, columns, rows):
    """Writes rows as the kind of table that the path's name says."""
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([columns, *rows])
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    else:
        as_bytes = lambda v: v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v
        cells = [[as_bytes(v) for v in column] for column in zip(*rows, strict=True)]
        arrays = [pa.array(c) for c in cells]
        # a view keeps what is not UTF-8, as writers that do not check do
        arrays = [a.view(pa.string()) if pa.types.is_binary(a.type) else a for a in arrays]
        pyarrow.parquet.write_table(pa.table(dict(zip(columns, arrays, strict=True))), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_give_clips_with_times_and_labels(kind, folder):
    columns = ("path", "text", "id", "start", "end", "aesthetic", "camera", "story", "refused")
    table = write(
        folder / f"t.{kind}",
        columns,
        [
            ("a.mp4", " first\r\nline ", "one", 1.5, 3, 5.25, "pan_left", "x" * 500, "forged"),
            ("deep/b.mp4", None, "two/2", None, None, 4.0, "", "", ""),
        ],
    )
    one, two = specs.read(table)
    file = str(folder / "a.mp4")
    given = {"aesthetic": 5.25, "camera": "pan_left"}
    assert one == clips.Clip("one", file, "first line", kind, 1.5, 3.0, given)
    assert two == clips.Clip(
        "two/2", str(folder / "deep/b.mp4"), None, kind, None, None, given={"aesthetic": 4.0}
    )
    assert clips.open_binary(one.file).read() == b"a.mp4"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_hostile_paths_are_refused_and_the_others_stay(kind, folder):
    paths = [p for p in HOSTILE if not (kind == "jsonl" and "\udc80" in p)]
    rows = [("a.mp4", "good"), *((path, "bad") for path in paths), ("./inner.mp4", "good")]
    table = specs.read(write(folder / f"t.{kind}", ("path", "text"), rows))
    assert data_sets.reasons(table) == ["", *(HOSTILE[p] for p in paths), ""]
    assert [table[0].id, table[-1].id] == ["a.mp4", "inner.mp4"]
    ids = [clip.id for clip in table]
    assert len(set(ids)) == len(ids)
    for clip_id in ids:
        assert clip_id.isprintable() and ".." not in clip_id and not clip_id.startswith("/")
    assert all(":" in clip.given["refused"] for clip in table[1:-1])


def test_a_wider_root_lets_paths_leave_the_folder_of_the_table(folder):
    rows = [("../outside.mp4", "x"), (str(folder / "a.mp4"), "y"), ("/etc/passwd", "z")]
    table = write(folder / "t.csv", ("path", "text"), rows)
    refused = specs.read(table)
    assert data_sets.reasons(refused) == ["outside root", "", "outside root"]
    assert "SOURCE?root=FOLDER allows" in refused[0].given["refused"]
    found = specs.read(f"{table}?root={folder.parent}")
    assert data_sets.reasons(found) == ["", "", "outside root"]
    assert [clip.id for clip in found[:2]] == ["outside.mp4", "a.mp4"]
    with pytest.raises(ValueError, match=r"root=/none: there is no such folder"):
        specs.read(f"{table}?root=/none")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("e\u0301 😀 ok", "é 😀 ok"),
        ("a\x00b\x07c\x9f d", "abc d"),
        ("a\x1b[31mred", "a[31mred"),
        ("one\n\n\ttwo\u2028three", "one two three"),
        ("half \ud83d pair", "half � pair"),
        ("\ufeff  \n", None),
        ("x" * 20_000, "x" * 20_000),
        ("x" * 20_001, "caption too long"),
        ("y" * 10_000_000, "caption too long"),
    ],
)
def test_captions_are_cleaned_or_refused(kind, text, clean, folder):
    if "\ud83d" in text and kind != "jsonl":
        text = text.replace("\ud83d", "\udced")  # a byte that is not UTF-8
    if text.startswith("\ufeff"):
        text = "  \n"
    rows = [("a.mp4", text), ("deep/b.mp4", "next")]
    first, second = specs.read(write(folder / f"t.{kind}", ("path", "text"), rows))
    if clean == "caption too long":
        assert data_sets.reasons([first]) == [clean] and first.text is None
        assert len(first.given["refused"]) < 300
    else:
        assert first.text == clean and "refused" not in first.given
    if first.text:
        assert unicodedata.is_normalized("NFC", first.text)
        first.text.encode("utf-8")
    assert second.text == "next"


def test_ids_that_come_twice_are_refused_once(folder):
    rows = [("a.mp4", "x", ""), ("./deep/../a.mp4", "y", ""), ("c.png", "z", "a.mp4")]
    rows += [("deep/b.mp4", "w", "../b"), ("deep/b.mp4", "v", "a\nb")]
    table = specs.read(write(folder / "t.csv", ("path", "text", "id"), rows))
    assert data_sets.reasons(table) == ["", "duplicate id", "duplicate id", "bad id", "bad id"]
    assert len({clip.id for clip in table}) == 5


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        ("0:01:02.5", "1:02:03", (62.5, 3723.0)),
        ("", "4", (None, 4.0)),
        ("1", "", (1.0, None)),
        ("3", "3", None),
        ("-1", "2", None),
        ("nan", "2", None),
        ("1e99", "", None),
        ("soon", "2", None),
    ],
)
def test_times_are_seconds_or_clocks(start, end, times, folder):
    columns = ("path", "text", "start", "end")
    [clip] = specs.read(write(folder / "t.csv", columns, [("a.mp4", "x", start, end)]))
    if times is None:
        assert data_sets.reasons([clip]) == ["bad times"]
    else:
        assert (clip.start, clip.end) == times


def test_labels_are_finite_numbers_and_short_strings(folder):
    row = {"path": "a.mp4", "text": "x", "n": 3, "f": 0.5, "t": True, "s": "pan", "deep": {"a": 1}}
    row |= {"huge": 10**400, "inf": float("inf"), "nan": float("nan"), "long": "x" * 999, "": 1}
    row |= {"bad\x00key": "v\x07", "refused": "damaged: forged", "id": None} | {"k" * 999: 1}
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n")
    [clip] = specs.read(folder / "t.jsonl")
    assert clip.given == {"n": 3.0, "f": 0.5, "t": 1.0, "s": "pan", "badkey": "v"}
    many = {"path": "a.mp4", "text": "x"} | {f"k{i}": i for i in range(10_000)}
    (folder / "t.jsonl").write_text(json.dumps(many) + "\n")
    assert len(specs.read(folder / "t.jsonl")[0].given) == 64


def test_lines_that_are_no_json_are_refused_alone(folder):
    lines = [
        b'{"path": "a.mp4", "text": "good"}',
        b"[" * 100_000,
        b'{"path":' * 100_000,
        b'["a.mp4"]',
        b"7",
        b'{"path": "deep/b.mp4", "text": ' + b"9" * 5000 + b"}",
        b'{"path": 5, "text": "x"}',
        b'{"path": "c.png", "text": ["x"]}',
        b'{"text": "no path"}',
        b"\xff\xfe{",
        b"",
        b'{"path": "deep/b.mp4", "text": "good \\ud83d"}',
    ]
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    table = specs.read(folder / "t.jsonl")
    bad = ["bad json"] * 5 + ["bad path", "bad caption", "missing path", "bad json"]
    assert data_sets.reasons(table) == ["", *bad, ""]
    assert (table[-1].id, table[-1].text) == ("deep/b.mp4", "good �")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_a_byte_order_mark_tells_the_encoding(kind, encoding, folder):
    caption = "a dog\u2028in São Paulo"
    texts = {
        "csv": f"path,text\r\na.mp4,{caption}\r\n",
        "jsonl": json.dumps({"path": "a.mp4", "text": caption}, ensure_ascii=False) + "\n",
        "txt": caption,
    }
    mark = "\ufeff" if encoding.endswith("le") else ""
    name = "a.txt" if kind == "txt" else f"t.{kind}"
    (folder / name).write_bytes((mark + texts[kind]).encode(encoding))
    table = specs.read(folder if kind == "txt" else folder / name)
    assert table[0].id == "a.mp4" and table[0].text == "a dog in São Paulo"


def test_parts_of_one_file_are_clips_of_their_own(folder):
    rows = [
        ("a.mp4", "0", "1"),
        ("a.mp4", "1", "2.5"),
        ("a.mp4", "1.0", "2.50"),
        ("a.mp4", "", "1"),
    ]
    rows += [("a.mp4", "3", ""), ("a.mp4", "", "")]
    table = specs.read(
        write(folder / "t.csv", ("path", "start", "end", "text"), [(*r, "x") for r in rows])
    )
    assert data_sets.reasons(table) == ["", "", "duplicate id", "duplicate id", "", ""]
    assert [c.id for c in table][:2] == ["a.mp4@0-1", "a.mp4@1-2.5"]
    assert [c.id for c in table][4:] == ["a.mp4@3-", "a.mp4"]


@pytest.mark.parametrize("there, asked", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_name_is_found_in_either_form(there, asked, folder):
    form = lambda kind: unicodedata.normalize(kind, "é/ü.mp4")
    folder = folder / unicodedata.normalize("NFC", "à")  # made elsewhere than the file
    (folder / form(there)).parent.mkdir(parents=True)
    (folder / form(there)).write_bytes(b"x")
    [clip] = specs.read(write(folder / "t.csv", ("path", "text"), [(form(asked), "x")]))
    assert data_sets.reasons([clip]) == [""] and os.path.exists(clip.file)
    assert clip.id == form("NFC")


def test_columns_can_be_named(folder):
    table = write(folder / "t.csv", ("file", "caption"), [("a.mp4", "x")])
    with pytest.raises(ValueError, match="no column path and no column text; its columns are file"):
        specs.read(table)
    assert specs.read(f"{table}?path=file&text=caption")[0].text == "x"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", None, "does not exist"),
        ("t.csv", b"", "has no rows"),
        ("t.csv", b"path,text\n", "has no rows"),
        ("t.csv", "path,text\na.mp4,b\n".encode("utf-16-le"), "not a CSV file in UTF-8"),
        ("t.csv", b'path,text\na.mp4,"' + b"x" * (65 << 20), "field larger than field limit"),
        ("t.jsonl", b"", "has no rows"),
        ("t.jsonl", b'{"file": "a.mp4"}\n', "no column path; its columns are file"),
        ("t.parquet", b"PAR1 not really", "cannot be read as parquet"),
        ("t.parquet", b"", "cannot be read as parquet"),
        ("t.tar", b"not a tar" * 1000, "no sample could be read"),
        ("t.xlsx", b"x", "neither a folder nor a table"),
        ("none", None, "does not exist"),
        ("shard-{0..3}.tar", None, "no sample could be read"),
        ("shard-*.tar", None, "names no file"),
        ("openvid:none", None, "is no folder"),
        ("miradata:none.csv", None, "does not exist"),
    ],
)
def test_unreadable_sources_say_what_is_wrong(name, content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        pathlib.Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        specs.read(name)


def test_an_unknown_option_names_those_there_are(folder):
    with pytest.raises(ValueError, match="no option txt; it has path, text, root"):
        specs.read(f"{folder}/t.csv?txt=caption")


def test_a_folder_takes_captions_from_txt_or_json(folder):
    (folder / "a.txt").write_text(" first\n")
    (folder / "deep/b.json").write_text(json.dumps({"caption": "second", "end": 2, "motion": 0.5}))
    (folder / "c.json").write_text("[" * 100_000)
    table = {clip.id: clip for clip in specs.read(folder)}
    assert list(table) == ["a.mp4", "c.png", "deep/b.mp4@0-2", "inner.mp4", "link.mp4"]
    assert table["a.mp4"].text == "first" and table["a.mp4"].source == "folder"
    deep = table["deep/b.mp4@0-2"]
    assert (deep.text, deep.end, deep.given) == ("second", 2.0, {"motion": 0.5})
    assert data_sets.reasons(table.values()) == ["", "bad json", "", "", "outside root"]
    assert table["inner.mp4"].text is None


@pytest.mark.parametrize("name", ["a.ts", "b.M2TS", "c.flv", "d.gif", "e.tiff", "f.avif", "g.wmv"])
def test_media_that_are_not_read_are_listed(name, folder):
    (folder / name).write_bytes(b"x")
    (folder / name).with_suffix(".txt").write_text("a dog")
    table = {clip.id: clip for clip in specs.read(folder)}
    assert data_sets.reasons([table[name]]) == ["unknown format"]
    assert "convert it to mp4" in table[name].given["refused"] and table["a.mp4"].file


def test_a_caption_that_is_a_trap_is_refused(folder):
    (folder / "a.txt").symlink_to("/etc/passwd")
    (folder / "c.txt").write_bytes(b"x" * (11 << 20))
    os.mkfifo(folder / "deep/b.txt")
    table = {clip.id: clip for clip in specs.read(folder)}
    names = ("a.mp4", "c.png", "deep/b.mp4")
    assert data_sets.reasons(table[n] for n in names) == [
        "outside root",
        "caption too long",
        "not a file",
    ]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_shards_become_clips_read_in_place(tmp_path):
    videos = {f"{i:03d}": encoding.encode_mp4(data_sets.draw(i)[0], 12) for i in range(3)}
    for shard in range(2):
        members = []
        for key, content in videos.items():
            members += [(f"{key}.mp4", content), (f"{key}.txt", f"shard {shard}".encode())]
            members += [(f"{key}.json", json.dumps({"aesthetic": 5, "text": "json"}).encode())]
        write_tar(tmp_path / f"set-{shard:02d}.tar", members)
    table = specs.read(f"{tmp_path}/set-{{00..01}}.tar")
    lost = specs.read(f"{tmp_path}/set-{{00..02}}.tar")[-1].given["refused"]
    assert lost == f"missing file: there is no {tmp_path}/set-02.tar."
    assert [clip.id for clip in table] == [f"set-{s:02d}/{k}" for s in range(2) for k in videos]
    assert table == specs.read(f"{tmp_path}/set-?{{0,1}}.tar") == specs.read(f"{tmp_path}/*.tar")
    for clip in table:
        assert clip.text == f"shard {clip.id[5]}" and clip.given == {"aesthetic": 5.0}
        assert clips.open_binary(clip.file).read() == videos[clip.id[-3:]]


def test_webdataset_traps_are_verdicts(tmp_path):
    members = [("only.txt", b"x"), ("../up.mp4", b"v"), ("a.mp4", b"v"), ("a.json", b"[" * 100_000)]
    members += [("b.mp4", b"v"), ("b.txt", b"t"), ("x/b.mp4", b"v" * 5000)]
    path = write_tar(tmp_path / "s.tar", members)
    table = specs.read(str(path))
    assert data_sets.reasons(table) == ["missing file", "bad id", "bad json", "", ""]
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"v") - 1000])
    table = specs.read(str(path))
    assert data_sets.reasons(table[:4]) == ["missing file", "bad id", "bad json", ""]
    assert data_sets.reasons(table[4:]) == ["truncated", "damaged"]
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(ValueError, match="no sample could be read"):
        specs.read(str(tmp_path / "z.tar"))


def test_openvid_finds_each_clip_in_its_part(tmp_path, capsys):
    data = data_sets.write_openvid(tmp_path)
    table = specs.read(f"openvid:{tmp_path}")
    assert [clip.id for clip in table] == data.present + data.missing
    assert data_sets.reasons(table) == [""] * len(data.present) + ["missing file"] * len(
        data.missing
    )
    assert "7 clips, 1 of them not here or refused" in capsys.readouterr().err
    parts = [clip.file.rpartition("/")[2] for clip in table[:3]]
    assert parts == ["OpenVid_part0.zip", "OpenVid_part1.zip", "OpenVid_part2_part"]
    for clip in table[: len(data.present)]:
        assert clip.text == data.texts[clip.id] and clip.source == "openvid"
        assert clip.given["camera"] == "pan_left" and clip.given["aesthetic"] >= 4
        assert video_io.check(clips.open_binary(clip.file).read()).num_frames == 24


def test_openvid_counts_members_without_a_row(tmp_path, capsys):
    data_sets.write_openvid(tmp_path)
    specs.read(f"openvid:{tmp_path}")
    assert "3 parts hold 7 clips, 1 of them not in the table" in capsys.readouterr().err


def test_openvid_tells_of_parts_that_are_cut_off(tmp_path, capsys):
    data = data_sets.write_openvid(tmp_path)
    part = tmp_path / "OpenVid_part1.zip"
    part.write_bytes(part.read_bytes()[:-100])
    os.remove(tmp_path / "OpenVid_part2_partab")
    table = specs.read(f"openvid:{tmp_path}")
    lost = [clip.id for clip in table if "refused" in clip.given]
    assert lost == [n for i, n in enumerate(data.present) if i % 3] + data.missing
    assert "OpenVid_part1.zip" in table[1].given["refused"]
    assert "OpenVid_part1.zip: " in capsys.readouterr().err


def test_openvid_finds_unpacked_clips_and_the_hd_parts(tmp_path):
    data = data_sets.write_openvid(tmp_path / "a")
    (tmp_path / "b/data/train").mkdir(parents=True)
    (tmp_path / "b/OpenVidHD").mkdir()
    os.rename(data.table, tmp_path / "b/data/train/OpenVidHD.csv")
    os.rename(tmp_path / "a/OpenVid_part0.zip", tmp_path / "b/OpenVidHD/OpenVidHD_part_1.zip")
    for end in ("aa", "ab"):
        new = tmp_path / f"b/OpenVidHD/OpenVidHD_part_15_part_{end}"
        os.rename(tmp_path / f"a/OpenVid_part2_part{end}", new)
    with zipfile.ZipFile(tmp_path / "a/OpenVid_part1.zip") as archive:
        (tmp_path / "b/video").mkdir()
        for name in archive.namelist():
            (tmp_path / "b/video" / name.rpartition("/")[2]).write_bytes(archive.read(name))
    table = specs.read(f"openvid:{tmp_path}/b")
    assert data_sets.reasons(table) == [""] * len(data.present) + ["missing file"]


def test_miradata_clips_are_times_in_videos(tmp_path):
    data = data_sets.write_miradata(tmp_path)
    table = specs.read(f"miradata:{tmp_path}")
    assert table == specs.read(f"miradata:{data.table}")
    assert [clip.id for clip in table] == data.present + data.missing
    assert data_sets.reasons(table) == [""] * 4 + ["missing file"]
    assert [(clip.start, clip.end) for clip in table[:2]] == [(0.0, 2.0), (2.0, 4.0)]
    assert table[0].file == table[1].file != table[2].file
    assert table[0].text == data.texts[table[0].id]
    assert table[2].given["category"].startswith("youtube") and table[2].given["fps"] == 12.0
    short = specs.read(f"miradata:{tmp_path}?caption=short_caption")
    assert short[0].text + ", in dense words" == table[0].text
    with pytest.raises(ValueError, match="caption=long is not one of dense_caption"):
        specs.read(f"miradata:{tmp_path}?caption=long")


def test_miradata_takes_cut_clips_and_flat_folders(tmp_path):
    data = data_sets.write_miradata(tmp_path)
    raw = tmp_path / "raw_video/000000000/000000000998.mp4"
    cut = tmp_path / "video_clips/000000000/000000000998.0.mp4"
    cut.parent.mkdir(parents=True)
    os.rename(raw, cut)
    flat = tmp_path / "raw_video/000000001001.webm"
    os.rename(tmp_path / "raw_video/000000001/000000001001.mp4", flat)
    table = {clip.id: clip for clip in specs.read(f"miradata:{data.table}")}
    assert (table["998.0"].file, table["998.0"].end) == (str(cut), None)
    assert data_sets.reasons([table["998.1"]]) == ["missing file"]
    assert (table["1001.1"].file, table["1001.1"].start) == (str(flat), 2.0)


def test_miradata_rows_are_not_trusted(tmp_path):
    data = data_sets.write_miradata(tmp_path)
    text = data.table.read_text()
    lines = list(csv.DictReader(io.StringIO(text)))
    traps = [
        {"timestamp": "__import__('os').abort()"},
        {"timestamp": "['00:00:02.0', '00:00:01.0']"},
        {"clip_id": "../../etc/passwd"},
        {"clip_id": "9" * 400},
        {"clip_id": ""},
        {"clip_id": "77.0", "file_path": "../../../etc/passwd"},
    ]
    data_sets.write_table(data.table, data_sets.MIRADATA_COLUMNS, [lines[0] | t for t in traps])
    found = data_sets.reasons(specs.read(f"miradata:{data.table}"))
    assert found == ["bad times", "bad times", "bad id", "bad id", "bad id", "missing file"]


def test_miradata_v0_has_frames_instead_of_times(tmp_path):
    columns = ("index", "video_id", "start_frame", "end_frame", "dense_caption", "fps")
    rows = [("000000008783_AJp_ANX-oGoM-000114", "AJp_ANX-oGoM", 300, 450, "x", 30)]
    table = write(tmp_path / "miradata_v0.csv", columns, rows)
    video = tmp_path / "raw_video/000000008/000000008783_AJp_ANX-oGoM.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"video")
    [clip] = specs.read(f"miradata:{table}")
    assert (clip.file, clip.start, clip.end) == (str(video), 10.0, 15.0)


def test_the_command_counts_a_source(tmp_path):
    data_sets.write_openvid(tmp_path)
    command = [sys.executable, "-m", "data_pipelines.sources", f"openvid:{tmp_path}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"7 rows, 6 clips to look at(.|\n)*missing file: 1 \(first, never_up", result.stdout
    )
    assert re.search(r"caption  \S.*\n    given    aesthetic 4; motion 1.5; ", result.stdout)
    assert "Clip(" not in result.stdout
    (tmp_path / "folder").mkdir()
    (tmp_path / os.fsdecode(b"folder/\xff.mp4")).touch()  # no UTF-8, which a folder may hold
    result = subprocess.run([*command[:-1], tmp_path / "folder"], capture_output=True, text=True)
    assert result.returncode == 0 and r"\udcff.mp4" in result.stdout, result.stderr
    result = subprocess.run([*command[:-1], "none"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith(
        "error: --source=none does not exist"
    )


def test_remote_tables_and_tars_are_read_where_they_are(tmp_path):
    import fsspec

    files = fsspec.filesystem("memory")
    write(tmp_path / "t.csv", ("path", "text"), [
        ("deep/a.mp4", "x"), ("memory://bucket/set/b.mp4", "y"), ("memory://other/c.mp4", "z"),
        ("../c.mp4", "z"), ("/c.mp4", "z"), ("file:///etc/passwd", "z"),
    ])  # fmt: skip
    write_tar(tmp_path / "s-0.tar", [("k.mp4", b"video"), ("k.txt", b"text")])
    for name in ("t.csv", "s-0.tar"):
        files.pipe(f"/bucket/set/{name}", (tmp_path / name).read_bytes())
    files.pipe("/bucket/set/deep/a.mp4", b"content")
    table = specs.read("memory://bucket/set/t.csv")
    assert data_sets.reasons(table) == ["", "", *["outside root"] * 4]
    assert [clip.id for clip in table[:2]] == ["deep/a.mp4", "b.mp4"]
    assert clips.open_binary(table[0].file).read() == b"content"
    for pattern in ("s-{0..0}.tar", "s-*.tar"):
        [clip] = specs.read(f"memory://bucket/set/{pattern}")
        assert clip.text == "text" and clips.open_binary(clip.file).read() == b"video"


@pytest.mark.parametrize("write", [data_sets.write_openvid, data_sets.write_miradata])
def test_small_data_sets_are_written_to_new_folders(write, tmp_path):
    write(tmp_path / "new", 2)
    with pytest.raises(ValueError, match="new holds files: name a new folder"):
        write(tmp_path / "new", 2)
