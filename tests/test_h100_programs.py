"""The list of programs keeps step with the commands; compiling them is `tests.compile_h100`."""

import dataclasses

import jax
import pytest

from tests import compile_h100, h100_programs
from vidgen.training import sharding


@pytest.fixture(scope="module")
def models():
    return h100_programs.Models(1, 8)


def test_stage_1_has_26_shapes(models):
    shapes = list(models.shapes())
    assert len({(b.resolution, b.num_frames) for b in shapes}) == len(shapes) == 26
    assert models.bucket("240p", 51).batch_size == 8 * 20


@pytest.mark.parametrize("command", h100_programs.COMMANDS)
def test_programs_take_their_arguments(command, models):
    mesh = sharding.make_mesh(models.mesh_shape(command))
    with jax.set_mesh(mesh):
        found = h100_programs.COMMANDS[command](models, mesh, models.bucket("144p", 51))
        lowered = [program.run.lower(*program.arguments) for program in found]
    assert found and all("module @jit" in program.as_text()[:200] for program in lowered)
    assert {program.command for program in found} == {command}


def test_a_record_knows_equal_programs_and_forgets_no_row(tmp_path):
    row = compile_h100.Row("train", "apply", "240p", 51, 160, [1], 8, 0.0, digest="same")
    failed = dataclasses.replace(row, frames=102, digest="other", error="ValueError: no")
    known = compile_h100.Known(tmp_path / "record.json")
    known.add(row)
    known.add(failed)
    again = compile_h100.Known(tmp_path / "record.json")
    assert again.get("same") == row and again.get("other") is None
    again.add(dataclasses.replace(row, peak_bytes=7))  # the same place, compiled anew
    again.keep(again.rows()[:1])
    assert [r.peak_bytes for r in compile_h100.Known(tmp_path / "record.json").rows()] == [7]
    (tmp_path / "record.json").write_text('[{"no": "row"}]')
    with pytest.raises(SystemExit, match="is no record of this command"):
        compile_h100.Known(tmp_path / "record.json")


def test_a_row_shows_what_is_sent_and_why_it_failed():
    row = compile_h100.Row("train", "update", "240p", 51, 160, [1, 3], 8, 8.0e14)
    row.collectives, row.peak_bytes = {"all-gather": {"fsdp": 4_840_000_000}}, 61_410_000_000
    row.attention = {"forward": 6, "backward": 3}
    shown = compile_h100.line(row)
    assert all(x in shown for x in ("240p/51", "61.41", "800.0", "6+3", "all-gather(fsdp) 4.84"))
    assert row.name == "train/update/240p/51x8"


def test_a_row_tells_of_memory_collectives_and_errors():
    row = compile_h100.Row("train", "gradient", "240p", 51, 160, [1, 3], 8, 8.0e14)
    row.sent, row.peak_bytes = {"all-gather": 4_800_000_000}, 75_000_000_000
    row.collectives = {"all-gather": {"fsdp": 4_840_000_000}, "all-reduce": {"fsdp": 3_000_000}}
    assert row.problems == []
    row.collectives["all-to-all"] = {"data": 40_000_000}
    assert row.problems == ["all-to-all of 0.04 GB, not 0.00"]
    row.collectives, row.peak_bytes = {}, 77_000_000_000
    assert row.problems == ["takes 77.0 GB, 76 are there", "all-gather of 0.00 GB, not 4.80"]
    row.error = "ValueError: no\nmore"
    assert row.problems == ["ValueError: no"] and compile_h100.line(row).endswith("ValueError: no")
