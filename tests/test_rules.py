import json

import pytest

from data_pipelines.stages import ledger, rules

VIDEO = {"kind": "video", "num_frames": 48, "fps": 24.0, "height": 90, "width": 160}
VIDEO |= {"motion": 0.7, "camera": "pan_left", "caption": " a red  ball ", "aesthetic": 4.75}


def passes(rule, **row):
    table = ledger.table([VIDEO | row])
    return rules.apply(rules.parse([rule]), table)[0] is None


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ("motion >= 0.7", True),  # as written, though the ledger holds 0.69999998
        ("motion > 0.7", False),
        ("0.1 < motion < 0.8", True),
        ("0.1 < motion < 0.2", False),
        ("camera != 'unknown'", True),
        ('camera == "unknown"', False),
        ("camera in ('pan_left', 'static')", True),
        ("camera not in ('pan_left', 'static')", False),
        ("2 <= seconds <= 30", True),
        ("seconds > 2", False),
        ("pixels == 14400 and short_side == 90 and width > height", True),
        ("aspect < 0.5625", False),
        ("words == 3", True),
        ("motion < 0.1 or aesthetic >= 4.5", True),
        ("not (motion < 0.1 or aesthetic >= 4.5)", False),
        ("-1 < motion", True),
    ],
)
def test_rules_read_as_they_are_written(rule, result):
    assert passes(rule) is result


def test_a_missing_value_passes_nothing_but_what_asks_for_it():
    for rule in ("motion >= 0.1", "motion < 0.1", "motion != 0.1", "not motion >= 0.1"):
        assert not passes(rule, motion=None)
    assert not passes("camera != 'unknown'", camera=None)
    assert not passes("camera not in ('unknown', 'static')", camera=None)
    assert passes("motion is None", motion=None) and not passes("motion is None")
    assert passes("motion is None or motion >= 0.1", motion=None)
    image = {"kind": "image", "num_frames": 1, "fps": 120.0}
    assert not passes("seconds < 30", **image)
    assert passes("kind == 'image' or seconds < 30", **image)
    assert not passes("words >= 1", caption="  ") and not passes("words >= 0", caption=None)


def test_the_first_rule_that_fails_is_the_verdict_with_the_values_in_it():
    table = ledger.table([VIDEO, VIDEO | {"motion": 0.01}, VIDEO | {"camera": None}])
    verdicts = rules.apply(rules.parse(["motion >= 0.1", "camera != 'static'", "fps < 99"]), table)
    assert verdicts[0] is None
    assert verdicts[1] == ("motion >= 0.1", "motion is 0.01.")
    assert verdicts[2] == ("camera != 'static'", "camera has no value.")


def test_what_the_source_says_can_be_asked_for():
    rows = [{"given": json.dumps(given)} for given in ({"score": 5, "tag": "x"}, {"score": 4}, {})]
    table = ledger.table(rows)
    verdicts = rules.apply(rules.parse(["given.score >= 4.5"]), table)
    assert [v and v[1] for v in verdicts] == [
        None,
        "given.score is 4.",
        "given.score has no value.",
    ]
    verdicts = rules.apply(rules.parse(["given.tag == 'x'", "given.none is None"]), table)
    assert [v is None for v in verdicts] == [True, False, False]
    with pytest.raises(ValueError, match=r"no column 'given.skore'; did you mean 'given.score'"):
        rules.parse(["given.skore > 1"], said={"score", "tag"})


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("mootion >= 0.1", "no column 'mootion'; did you mean 'motion'"),
        ("motion >= 'a lot'", "compares words with numbers"),
        ("camera > 3", "compares words with numbers"),
        ("motion", "neither true nor false"),
        ("motion >=", "cannot be read"),
        ("", "cannot be read"),
        ("motion = 3", "cannot be read"),
        ("motion is 3", "a rule compares columns"),
        ("camera in 'pan_left'", "a rule compares columns"),
        ("__import__('os').system('true')", "does not belong in a rule|there is no column"),
        ("(lambda: motion)() > 1", "does not belong in a rule"),
        ("[motion for motion in ()] == 1", "does not belong in a rule"),
        ("motion.__class__ == 1", "there is no column"),
        ("motion ** 9 ** 9 > 1", "does not belong in a rule"),
        ("(" * 500 + "motion" + ")" * 500 + " > 1", "cannot be read"),
    ],
)
def test_what_is_no_rule_is_refused_before_any_work(rule, words):
    with pytest.raises(ValueError, match=words):
        rules.parse(["fps < 99", rule])


def test_one_text_is_not_taken_for_many_rules():
    with pytest.raises(ValueError, match="is one text: give a tuple"):
        rules.parse("motion >= 0.1")
