"""Which batches a run passes over is a pure function of what is written down."""

import json

import pytest

from tests import test_micro_steps
from vidgen.training import rewinds


def saved(workdir, *steps, known=0):
    for step in steps:
        folder = workdir / "checkpoints" / str(step) / "meta"
        folder.mkdir(parents=True)
        meta = {"step": step} | ({"rewinds": known} if known else {})  # older ones say nothing
        (folder / "metadata").write_text(json.dumps(meta))


def order(found, count):
    return [found.number(position) for position in range(count)]


def test_batches_are_passed_over_in_order(tmp_path):
    skip = ((20, 25), (3, 5), (5, 6), (22, 23), (28, 30))
    found = rewinds.Rewinds(tmp_path, skip)
    over = {n for first, end in skip for n in range(first, end)}
    assert order(found, 40) == [n for n in range(60) if n not in over][:40]
    assert order(rewinds.Rewinds(tmp_path), 5) == [0, 1, 2, 3, 4]
    assert "batches 20 to 24 are passed over" in list(found.describe())


def test_updates_of_several_batches_jump_within_an_update(tmp_path):
    found = rewinds.Rewinds(tmp_path, ((4, 7),), batches=3)
    micro_steps = test_micro_steps.make(batches=3, slices=2, number=found.number)
    taken = []
    for (micro_step, batch), _ in zip(micro_steps.iterate(0), range(24), strict=False):
        assert set(batch["number"]) == {micro_step.number}
        taken.append(micro_step.number)
    numbers = list(dict.fromkeys(taken))
    assert numbers[:9] == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    again = [m.number for (m, _), _ in zip(micro_steps.iterate(1), range(15), strict=False)]
    assert again == taken[6:21]  # a start in the middle


def test_going_back_leaves_checkpoints_from_before_and_is_read_again(tmp_path):
    saved(tmp_path, 20, 25, 30, 35)
    found = rewinds.Rewinds(tmp_path, batches=2)
    rewind = found.go_back(step=32, began=31, skip=5)
    assert rewind == rewinds.Rewind(32, 27, (54, 64))
    assert found.valid_steps() == [20, 25]
    assert sorted(path.name for path in (tmp_path / "rewound").iterdir()) == ["1-30", "1-35"]
    assert order(found, 58) == [*range(54), 64, 65, 66, 67]
    again = rewinds.Rewinds(tmp_path, batches=2)
    assert again.done == found.done and again.facts() == found.facts()
    saved(tmp_path, 30, known=1)
    second = again.go_back(step=33, began=31, skip=1)
    assert second.batches == (60 + 10, 66 + 10) and second.back == 30  # the spike is two updates
    assert again.valid_steps() == [20, 25, 30]
    assert order(again, 62) == [*range(54), *range(64, 70), 76, 77]


def test_a_kill_before_checkpoints_were_put_aside_is_made_good(tmp_path):
    saved(tmp_path, 20, 30)
    rewinds.Rewinds(tmp_path).go_back(step=32, began=25, skip=3)
    (tmp_path / "rewound/1-30").rename(tmp_path / "checkpoints/30")
    found = rewinds.Rewinds(tmp_path)
    assert found.valid_steps() == [20]
    found.put_aside()
    assert not (tmp_path / "checkpoints/30").exists()


def test_a_spike_that_is_older_than_all_checkpoints_leads_to_the_begin(tmp_path):
    saved(tmp_path, 20, 30)
    found = rewinds.Rewinds(tmp_path)
    assert found.go_back(step=32, began=15, skip=3) == rewinds.Rewind(32, 14, (14, 32))
    assert found.valid_steps() == []


def test_where_older_checkpoints_are_gone_less_is_passed_over(tmp_path):
    saved(tmp_path, 20, 30)
    found = rewinds.Rewinds(tmp_path)
    assert found.go_back(step=32, began=31, skip=25) == rewinds.Rewind(32, 20, (20, 32))
    assert found.valid_steps() == [20]


@pytest.mark.parametrize("skip", [((5, 5),), ((5,),), ((-1, 4),), ((1, 2.5),), ((7, 3),)])
def test_a_skip_that_is_none_is_refused(skip, tmp_path):
    with pytest.raises(ValueError, match="data.skip_batches holds .* give .first, end."):
        rewinds.Rewinds(tmp_path, skip)


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "rewinds.json").write_text('{"rewinds": [{"step": 1}]}')
    with pytest.raises(ValueError, match="rewinds.json is not readable"):
        rewinds.Rewinds(tmp_path)
