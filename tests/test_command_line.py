"""A wrong command line ends with one message that says what is right."""

import re

import pytest
from absl import flags
from ml_collections import config_flags

from vidgen.process import command_line

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
    if arg not in ("", "2"):
        raise ValueError(f"stage {arg} is not known: use 2")
    return ConfigDict({"optim": {"lr": 0.1, "warmup": 5}, "num_steps": 10, "model": {"depth": 2}})
"""


@pytest.fixture
def parse(tmp_path, capsys, monkeypatch):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)

    def run(*arguments, config=path):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        argv = ["train.py", f"--config={config}", *arguments]
        monkeypatch.setattr("sys.argv", argv)  # ml_collections reads the overrides there
        try:
            rest = command_line.parse(argv, values)
        except SystemExit as error:
            assert error.code == command_line.EXIT_USAGE
            return capsys.readouterr().err
        return values["config"].value.to_dict(), values["workdir"].value, rest

    return run


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["configs/tiny.py"],
            "'configs/tiny.py' belongs to no flag: .*mean --config=configs/tiny.py",
        ),
        (
            ["a", "red", "circle"],
            "'a red circle' belongs to no flag: .*Quote a text of several words",
        ),
        (["lr=3"], "'lr=3' belongs to no flag: write --name=value"),
    ],
)
def test_words_that_belong_to_no_flag_are_refused(words, said, parse):
    assert re.search(said, parse(*words))


def test_overrides_reach_the_config(parse):
    config, workdir, rest = parse("--config.optim.lr=2", "--workdir=here")
    assert (config["optim"]["lr"], workdir, rest) == (2.0, "here", ["train.py"])


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.optim.lrr=1", 'has no field "optim.lrr"; did you mean "optim.lr"?'),
        ("--config.optm.lr=1", 'has no field "optm.lr"; did you mean "optim.lr"?'),
        ("--config.lr=1", 'has no field "lr"; did you mean "optim.lr"?'),
        ("--config.depht=1", '"depht"; did you mean "model.depth"?'),
        ("--config.xyz=1", '"xyz"; it has model.depth, num_steps, optim.lr, optim.warmup.'),
        ("--config.optim.lr=fast", "'fast' is no number"),
        ("--config.num_steps", "Missing value"),
        ("--wrkdir=x", "Did you mean: workdir"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(parse, argument, message):
    err = parse(argument)
    assert err.startswith("train.py: ") and message in err
    assert "Traceback" not in err and len(err.splitlines()) == 1


def test_all_unknown_fields_are_told_together(parse):
    err = parse("--config.optim.lrr=1", "--config.num_stepss=2")
    assert '"optim.lr"' in err and '"num_steps"' in err


def test_a_config_that_cannot_be_read_is_named(parse, tmp_path):
    assert "nothere.py" in parse(config=tmp_path / "nothere.py")
    assert "stage 3 is not known: use 2" in parse(config=f"{tmp_path}/small.py:3")
