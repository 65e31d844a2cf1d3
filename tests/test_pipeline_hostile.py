"""Hostile files and captions go through the whole ingest: each ends in a row of the ledger."""

import json
import unicodedata

import pytest

from configs import data
from data_pipelines.media import encoding, video_io
from data_pipelines.shards import records
from data_pipelines.stages import ingest, ledger
from tests import hostile, hostile_files

CAPTIONS = {
    "long": "word " * 2_000_000,
    "control": "a\x00 red\x1b[2J ball\u202e\r\n and more",
    "surrogate": "half \ud83d of a face",
    "formula": '=HYPERLINK("http://example.com","x")',
    "nothing": "\u200b \x00\n",
}


def write(folder, count):
    """Writes files with a table; returns the cases by id."""
    cases = {}
    with open(folder / "clips.jsonl", "w", encoding="ascii") as table:
        for number, case in enumerate(hostile.cases(count, seed=2, folder=str(folder))):
            path = hostile.place(case, folder, number)
            cases[path.name] = case
            table.write(json.dumps({"path": path.name, "text": f"clip {number}"}) + "\n")
        good = encoding.encode_mp4(video_io.decode(valid(cases)), 12)
        for name, caption in CAPTIONS.items():
            (folder / f"{name}.mp4").write_bytes(good)
            table.write(json.dumps({"path": f"{name}.mp4", "text": caption}) + "\n")
        for path in ("../outside.mp4", "/etc/passwd", "", "\x00.mp4", "long.mp4"):
            table.write(json.dumps({"path": path, "text": "x"}) + "\n")
        table.write('{"path": "cut off')
    return cases


def valid(cases):
    """The content of a valid video."""
    return next(
        c.content for c in cases.values() if c.expect == hostile_files.VALID and c.suffix == ".mp4"
    )


def check(folder, count):
    cases = write(folder, count)
    config = data.get_config()
    config.rules, config.cuts.min_seconds, config.dedup.near = (), 0.0, -1
    config.dedup.exact = False
    config.limits.deadline_seconds = 60.0
    ingest.run(folder / "clips.jsonl", folder / "out", config, num_workers=2)
    rows = ledger.read(folder / "out").to_pylist()
    by_file: dict[str, list] = {}
    for row in rows:
        by_file.setdefault(row["parent"] or row["id"], []).append(row)
        assert row["status"] == "kept" or (row["rule"] and row["message"]), row["id"]
    for name, case in cases.items():
        kept = [row["status"] == "kept" for row in by_file[name]]
        assert case.expect != hostile_files.REFUSED or not any(kept), (name, case.kind)
        assert case.expect != hostile_files.VALID or all(kept), (name, case.kind, by_file[name])
    rules = {row["rule"] for row in rows}
    assert not rules & {"decoder crash", "decoder hang", "decoder error", "encoder crash"}
    for record in records.Reader(folder / "out"):
        assert len(video_io.decode(record["video"])) == record["num_frames"]
        assert len(record["text"]) < 100_000
        assert not {"Cc", "Cs"} & set(map(unicodedata.category, record["text"]))


def test_hostile_files_and_captions_get_verdicts(tmp_path):
    check(tmp_path, 48)


@pytest.mark.slow
def test_a_thousand_hostile_files_get_verdicts(tmp_path):
    check(tmp_path, 1000)
