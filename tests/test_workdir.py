"""A working folder serves the run that made it."""

import json

import pytest
from ml_collections import ConfigDict

from vidgen.training import workdir

CONFIG = {"optim": {"lr": 1e-3, "betas": (0.9, 0.99)}, "num_steps": 10, "checkpoint": {"every": 5}}
FREE = ("num_steps", "checkpoint")


def change(**changes):
    config = ConfigDict(CONFIG)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_the_same_run_may_start_again(tmp_path):
    assert workdir.guard(tmp_path / "new", ConfigDict(CONFIG), "f1", FREE) == []
    first = (tmp_path / "new/run.json").read_text()
    assert json.loads(first)["config"]["optim"] == {"lr": 0.001, "betas": [0.9, 0.99]}
    assert workdir.guard(tmp_path / "new", CONFIG, "f1", FREE) == []
    assert (tmp_path / "new/run.json").read_text() == first


def test_fields_on_the_list_may_change_and_are_kept(tmp_path):
    workdir.guard(tmp_path, CONFIG, "f1", FREE)
    anew = workdir.guard(tmp_path, change(num_steps=20, checkpoint__every=2), "f1", FREE)
    assert anew == [("checkpoint.every", 5, 2), ("num_steps", 10, 20)]
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["num_steps"], config["checkpoint"]["every"]) == (20, 2)


def test_another_config_is_refused_field_by_field(tmp_path):
    workdir.guard(tmp_path, CONFIG, "f1", FREE)
    before = (tmp_path / "run.json").read_text()
    config = change(optim__lr=0.002, num_steps=20).to_dict()
    config["model"] = {"depth": 28}
    del config["optim"]["betas"]
    with pytest.raises(ValueError) as error:
        workdir.guard(tmp_path, config, "f1", FREE)
    assert str(error.value).splitlines()[1:4] == [
        "  model.depth: absent there, 28 here",
        "  optim.betas: [0.9, 0.99] there, absent here",
        "  optim.lr: 0.001 there, 0.002 here",
    ]
    assert (tmp_path / "run.json").read_text() == before


def test_a_field_of_a_later_version_may_come_empty(tmp_path):
    workdir.guard(tmp_path, CONFIG, "f1")
    workdir.guard(tmp_path, CONFIG | {"compat": ""}, "f1")
    with pytest.raises(ValueError, match='compat: "" there, "open-sora-1.2" here'):
        workdir.guard(tmp_path, CONFIG | {"compat": "open-sora-1.2"}, "f1")


def test_other_data_are_refused(tmp_path):
    workdir.guard(tmp_path, CONFIG, "f1")
    with pytest.raises(ValueError, match=r"f1 there, f2 here.*other clips.*another workdir"):
        workdir.guard(tmp_path, CONFIG, "f2")


def test_other_frozen_weights_are_refused_wherever_they_lie(tmp_path):
    workdir.guard(tmp_path, CONFIG, "f1", contents={"vae": "a"})
    workdir.guard(tmp_path, CONFIG, "f1", contents={})  # a start that needs none of them
    workdir.guard(tmp_path, CONFIG, "f1", contents={"vae": "a", "text": "b"})
    with pytest.raises(ValueError, match="other weights of vae and text: give those that the run"):
        workdir.guard(tmp_path, CONFIG, "f1", contents={"vae": "c", "text": "d"})


def test_a_broken_run_file_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable"):
        workdir.guard(tmp_path, CONFIG, "f1")


def test_a_data_set_is_no_working_folder(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(workdir.RefusedError, match="holds a data set .*give another workdir"):
        workdir.guard(tmp_path, CONFIG, "f1", FREE)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]
