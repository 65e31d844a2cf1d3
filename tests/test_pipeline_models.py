"""Models and caption endpoints see the clips that rules have not left out, once each."""

import csv

import numpy as np

from configs import data
from data_pipelines import pipeline, shapes
from data_pipelines.media import encoding
from data_pipelines.shards import records
from data_pipelines.stages import clip_scores, ingest, ledger, parts
from tests import test_captioner

endpoint = test_captioner.endpoint


def source(folder):
    """Twelve clips without captions and a short one."""
    table = shapes.write(folder, clips=12, images=0, seed=0)
    with open(table, newline="") as file:
        paths = [line["path"] for line in csv.DictReader(file)]
    (folder / "short.mp4").write_bytes(encoding.encode_mp4(np.zeros((3, 32, 32, 3), np.uint8), 12))
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "text"), *((path, "") for path in [*paths, "short.mp4"])]
        )
    return table


def test_captions_come_from_an_endpoint_for_clips_that_pass_the_rules(endpoint, tmp_path):
    server = endpoint("The video shows a small thing.")
    config = data.base()
    config.endpoint.url, config.endpoint.model = server.url, "any"
    config.rules = ("num_frames > 3", "words >= 3")
    table = source(tmp_path / "in")
    meta = ingest.run(table, tmp_path / "a", config, num_workers=2, keep_parts=tmp_path / "kept")
    assert meta["left_out"] == {"num_frames > 3": 1} and len(server.requests) == 12
    reader = records.Reader(tmp_path / "a")
    assert {record["text"] for record in reader} == {"A small thing."} and len(reader) == 12
    rows = ledger.read(tmp_path / "a").to_pylist()
    assert all(row["caption"] == "A small thing." for row in rows[:12])
    # other captions and shards of the same clips ask nobody
    config.captions.clean = True
    ingest.run(table, tmp_path / "b", config, num_workers=2, keep_parts=tmp_path / "kept")
    assert len(server.requests) == 12


def test_a_clip_that_the_endpoint_refuses_is_left_out_with_its_reason(endpoint, tmp_path):
    server = endpoint((400, {}), *["A thing."] * 11)
    config = data.base()
    config.endpoint.url, config.endpoint.model = server.url, "any"
    config.endpoint.parallel = 2
    ingest.run(source(tmp_path / "in"), tmp_path / "out", config, num_workers=1)
    rows = ledger.read(tmp_path / "out").to_pylist()
    (refused,) = [row for row in rows if row["status"] == "left out"]
    assert refused["rule"] == "no caption" and "status 400" in refused["message"]
    assert all(row["message"] is None for row in rows if row["status"] == "kept")


def test_scores_of_models_can_be_asked_for_in_rules(tmp_path, monkeypatch):
    class Scorer:
        def __init__(self, folder, mlp, allow_pickle):
            assert (folder, mlp) == (str(tmp_path), str(tmp_path))

        def score_rows(self, rows):
            for row in rows:
                seen = len(row.get("stills", ()))
                yield row | ({"aesthetic": 5.0 + (row["id"] == "clips/000003.mp4")} if seen else {})

    monkeypatch.setattr(clip_scores, "Scorer", Scorer)
    config = data.base()
    config.models.clip = config.models.aesthetic = str(tmp_path)
    config.rules = ("num_frames > 3", "aesthetic >= 5.5")
    table = shapes.write(tmp_path / "in", clips=6, images=0, seed=0)
    meta = ingest.run(table, tmp_path / "out", config, num_workers=1)
    assert meta["num_records"] == 1 and meta["left_out"] == {"aesthetic >= 5.5": 5}
    assert ledger.read(tmp_path / "out")["aesthetic"].to_pylist() == [5, 5, 5, 6, 5, 5]


def test_models_are_loaded_before_any_clip_is_looked_at(tmp_path, monkeypatch, capsys):
    """So a wrong one costs nothing, and a dry run does not take its loading for work on clips."""
    order = []

    class Scorer:
        def __init__(self, *paths, **options):
            order.append("loaded")

        def score_rows(self, rows):
            return iter(rows)

    class Examiner(parts.Examiner):
        def clip_rows(self, clip):
            order.append("clip")
            return super().clip_rows(clip)

    monkeypatch.setattr(clip_scores, "Scorer", Scorer)
    monkeypatch.setattr(parts, "Examiner", Examiner)
    table = shapes.write(tmp_path / "in", clips=2, images=0, seed=0)
    for flags in (["--dry-run"], []):
        pipeline.main(
            [f"--source={table}", f"--out={tmp_path / 'out'}", f"--config.models.clip={tmp_path}"]
            + ["--num_workers=1", *flags]
        )
        assert order[0] == "loaded" and order.count("loaded") == 1 and "clip" in order
        order.clear()
