"""Models and caption endpoints see the clips that rules have not left out, once each."""

import csv

import numpy as np

from configs import data
from data_pipelines import encoding, ledger, pipeline, records, shapes
from data_pipelines.stages import clip_scores
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
    meta = pipeline.ingest(
        table, tmp_path / "a", config, num_workers=2, keep_parts=tmp_path / "kept"
    )
    assert meta["left_out"] == {"num_frames > 3": 1} and len(server.requests) == 12
    reader = records.Reader(tmp_path / "a")
    assert {record["text"] for record in reader} == {"A small thing."} and len(reader) == 12
    rows = ledger.read(tmp_path / "a").to_pylist()
    assert all(row["caption"] == "A small thing." for row in rows[:12])
    # other captions and shards of the same clips ask nobody
    config.captions.add_camera = True
    pipeline.ingest(table, tmp_path / "b", config, num_workers=2, keep_parts=tmp_path / "kept")
    assert len(server.requests) == 12


def test_a_clip_that_the_endpoint_refuses_is_left_out_with_its_reason(endpoint, tmp_path):
    server = endpoint((400, {}), *["A thing."] * 11)
    config = data.base()
    config.endpoint.url, config.endpoint.model = server.url, "any"
    config.endpoint.parallel = 2
    pipeline.ingest(source(tmp_path / "in"), tmp_path / "out", config, num_workers=1)
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
    meta = pipeline.ingest(table, tmp_path / "out", config, num_workers=1)
    assert meta["num_records"] == 1 and meta["left_out"] == {"aesthetic >= 5.5": 5}
    assert ledger.read(tmp_path / "out")["aesthetic"].to_pylist() == [5, 5, 5, 6, 5, 5]
