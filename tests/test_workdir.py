"""A working folder serves the run that made it."""

import copy
import functools
import json
import re

import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from configs import tiny
from vidgen import train
from vidgen.training import identity, workdir
from vidgen.weights import digests

CONFIG = {"optim": {"lr": 1e-3, "betas": (0.9, 0.99)}, "num_steps": 10, "checkpoint": {"every": 5}}
FREE = ("num_steps", "checkpoint")


def start(folder, config, fingerprint, may_change=(), contents=None, accept=()):
    run = workdir.Run(folder, config, fingerprint, may_change, accept)
    run.weights(contents or {})
    return run.keep()


def change(**changes):
    config = ConfigDict(CONFIG)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_the_same_run_may_start_again(tmp_path):
    assert start(tmp_path / "new", ConfigDict(CONFIG), "f1", FREE) == []
    first = (tmp_path / "new/run.json").read_text()
    assert json.loads(first)["config"]["optim"] == {"lr": 0.001, "betas": [0.9, 0.99]}
    assert start(tmp_path / "new", CONFIG, "f1", FREE) == []
    assert (tmp_path / "new/run.json").read_text() == first


def test_fields_on_the_list_may_change_and_are_kept(tmp_path):
    start(tmp_path, CONFIG, "f1", FREE)
    anew = start(tmp_path, change(num_steps=20, checkpoint__every=2), "f1", FREE)
    assert anew == [("checkpoint.every", 5, 2), ("num_steps", 10, 20)]
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["num_steps"], config["checkpoint"]["every"]) == (20, 2)


def test_another_config_is_refused_field_by_field(tmp_path):
    start(tmp_path, CONFIG, "f1", FREE)
    before = (tmp_path / "run.json").read_text()
    config = change(optim__lr=0.002, num_steps=20).to_dict()
    config["model"] = {"depth": 28}
    del config["optim"]["betas"]
    with pytest.raises(ValueError) as error:
        start(tmp_path, config, "f1", FREE)
    assert str(error.value).splitlines()[1:4] == [
        "  model.depth: absent there, 28 here",
        "  optim.betas: [0.9, 0.99] there, absent here",
        "  optim.lr: 0.001 there, 0.002 here",
    ]
    assert (tmp_path / "run.json").read_text() == before


def test_every_field_of_a_run_is_compared_or_free(tmp_path):
    """More than forty changes between two starts: each is refused by name, or documented."""
    config = tiny.get_config().to_dict()
    start(tmp_path, config, "f1", train.MAY_CHANGE)
    refused = free = 0
    for name, value in traverse_util.flatten_dict(config, sep=".").items():
        other = {bool: lambda x: not x, str: lambda x: x + "x", tuple: lambda x: (*x, 1)}
        new = other.get(type(value), lambda x: (x or 0) + 1)(value)
        nested = copy.deepcopy(config)
        *groups, last = name.split(".")
        functools.reduce(dict.__getitem__, groups, nested)[last] = new
        if identity.covers(train.MAY_CHANGE, name):
            workdir.Run(tmp_path, nested, "f1", train.MAY_CHANGE)
            free += 1
            continue
        with pytest.raises(workdir.RefusedError, match=re.escape(f"  {name}: ")):
            workdir.Run(tmp_path, nested, "f1", train.MAY_CHANGE)
        workdir.Run(tmp_path, nested, "f1", train.MAY_CHANGE, [name])
        refused += 1
    assert refused > 60 and free > 20


def test_a_field_of_a_later_version_may_come_empty(tmp_path):
    start(tmp_path, CONFIG, "f1")
    start(tmp_path, CONFIG | {"compat": ""}, "f1")
    with pytest.raises(ValueError, match='compat: "" there, "open-sora-1.2" here'):
        start(tmp_path, CONFIG | {"compat": "open-sora-1.2"}, "f1")


def test_other_data_are_refused(tmp_path):
    start(tmp_path, CONFIG, "f1")
    message = r'(?s)"f1" there, "f2" here.*new run in another workdir.*other clips.*@1'
    with pytest.raises(ValueError, match=message):
        start(tmp_path, CONFIG, "f2")


def test_other_frozen_weights_are_refused_wherever_they_lie(tmp_path):
    start(tmp_path, CONFIG, "f1", contents={"vae": "a"})
    start(tmp_path, CONFIG, "f1", contents={})  # a start that needs none of them
    start(tmp_path, CONFIG, "f1", contents={"vae": "a", "text": "b"})
    message = '(?s)weights.text: "b" there, "d" here.*weights.vae: "a" there.*content counts'
    with pytest.raises(ValueError, match=message):
        start(tmp_path, CONFIG, "f1", contents={"vae": "c", "text": "d"})


def test_a_broken_run_file_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable"):
        start(tmp_path, CONFIG, "f1")


def test_a_data_set_is_no_working_folder(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(workdir.RefusedError, match="holds a data set .*give another workdir"):
        start(tmp_path, CONFIG, "f1", FREE)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]


def test_a_change_that_is_meant_is_taken_over_and_written_down(tmp_path):
    start(tmp_path, CONFIG, "f1")
    config = change(optim__lr=0.002)
    with pytest.raises(ValueError, match="--accept=fingerprint,optim.lr"):
        start(tmp_path, config, "f2")
    with pytest.raises(ValueError, match="fingerprint"):
        start(tmp_path, config, "f2", accept=["optim"])
    anew = start(tmp_path, config, "f2", accept=["optim", "fingerprint"])
    assert anew == [("fingerprint", "f1", "f2"), ("optim.lr", 0.001, 0.002)]
    assert start(tmp_path, config, "f2") == []
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["field"], e["there"], e["here"]) for e in events] == [
        ("accepted", "fingerprint", "f1", "f2"),
        ("accepted", "optim.lr", 0.001, 0.002),
    ]
    with pytest.raises(ValueError, match="optim.lr: 0.002 there, 0.001 here"):
        start(tmp_path, CONFIG, "f2")


def test_a_value_that_was_accepted_once_is_compared_like_any_other(tmp_path):
    start(tmp_path, CONFIG, "f1")
    start(tmp_path, change(optim__lr=0.002), "f1", accept=["optim.lr"])
    start(tmp_path, CONFIG, "f1", accept=["optim.lr"])
    with pytest.raises(ValueError, match="optim.lr: 0.001 there, 0.003 here"):
        start(tmp_path, change(optim__lr=0.003), "f1")


def test_a_folder_that_another_run_took_while_this_one_started_is_refused(tmp_path):
    late = workdir.Run(tmp_path, CONFIG, "data")
    start(tmp_path, change(optim__lr=0.5), "data")
    with pytest.raises(workdir.RefusedError, match="taken by another run while this one started"):
        late.lock()


def test_a_run_has_one_id_in_all_its_starts_and_another_folder_another(tmp_path):
    start(tmp_path / "a", CONFIG, "data")
    ids = {workdir.Run(tmp_path / name, CONFIG, "data").id for name in ("a", "a", "b")}
    assert len(ids) == 2


def test_an_accepted_name_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(workdir.RefusedError, match="--accept=optim.lrr names nothing of a run"):
        start(tmp_path, CONFIG, "f1", accept=["optim.lrr", "fingerprint", "weights.vae"])
    with pytest.raises(workdir.RefusedError, match="--accept=weights.vea names no weights"):
        start(tmp_path, CONFIG, "f1", contents={"vae": "a"}, accept=["weights.vea"])
    assert not list(tmp_path.iterdir())


def test_other_versions_and_other_code_are_refused(tmp_path, monkeypatch):
    start(tmp_path, CONFIG, "f1")
    there = identity.versions()
    monkeypatch.setattr(identity, "versions", lambda: there | {"jax": "9.9", "code": "other"})
    message = '(?s)versions.code: .*versions.jax: ".*" there, "9.9" here'
    with pytest.raises(ValueError, match=message):
        start(tmp_path, CONFIG, "f1")
    anew = start(tmp_path, CONFIG, "f1", accept=["versions"])
    assert [name for name, *_ in anew] == ["versions.code", "versions.jax"]


def test_a_checkpoint_says_itself_whose_it_is(tmp_path):
    run = workdir.Run(tmp_path / "a", CONFIG, "f1")
    meta = json.loads(json.dumps(run.meta(7)))
    assert meta["position"] == 7
    workdir.Run(tmp_path / "b", CONFIG, "f1").check(meta, "7")
    message = '(?s)the checkpoint 7 belongs to another.*"f1" there, "f2"'
    with pytest.raises(ValueError, match=message):
        workdir.Run(tmp_path / "b", CONFIG, "f2").check(meta, "7")
    with pytest.raises(ValueError, match="seed: absent there, 1 here"):
        workdir.Run(tmp_path / "b", CONFIG | {"seed": 1}, "f1").check(meta, "7")
    with pytest.raises(ValueError, match='"f1" there, "f2" here'):  # as older versions wrote it
        workdir.Run(tmp_path / "b", CONFIG, "f2").check({"fingerprint": "f1"}, "7")
    start(tmp_path / "c", CONFIG, "f1")
    start(tmp_path / "c", CONFIG, "f2", accept=["fingerprint"])
    workdir.Run(tmp_path / "c", CONFIG, "f2").check(meta, "7")  # it was said when the data changed


def test_a_folder_serves_one_run_at_a_time(tmp_path):
    run = workdir.Run(tmp_path / "new", CONFIG, "f1")
    run.lock()
    with pytest.raises(workdir.RefusedError, match=r"in use by process \d+ on .*wait for its end"):
        workdir.Run(tmp_path / "new", CONFIG, "f1").lock()
    del run
    workdir.Run(tmp_path / "new", CONFIG, "f1").lock()


def test_the_facts_of_a_start_hold_what_paths_hold_and_not_the_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/tmp/rank0")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    weights = tmp_path / "vae.safetensors"
    weights.write_bytes(bytes(range(256)) * 1000)
    facts = workdir.Run(tmp_path, CONFIG | {"vae": str(weights)}, "f1").facts(["vae", "num_steps"])
    assert facts["optim.lr"] == 0.001 and facts["fingerprint"] == "f1"
    assert facts["environment.XLA_FLAGS"] == "--xla_a=1"
    assert "vae" not in facts and "num_steps" not in facts and "environment.NCCL_DEBUG" not in facts
    weights.write_bytes(bytes(reversed(range(256))) * 1000)
    other = workdir.Run(tmp_path, CONFIG | {"vae": str(weights)}, "f1").facts(["vae", "num_steps"])
    assert {name for name in facts if facts[name] != other[name]} == {"content of vae"}


def test_no_path_holds_no_weights_though_the_current_folder_does(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    monkeypatch.chdir(tmp_path)
    assert digests.sample("") == "" and digests.sample("nothere") == ""
    assert digests.sample(".") != ""
