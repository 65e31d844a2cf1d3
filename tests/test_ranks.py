"""Processes of one run agree, hear of each other's end, and say who is missing."""

import json
import re
import signal
import time

import pytest

from tests import processes
from vidgen.process import exit_codes, ranks

START = """
import json, os, sys, time
import jax
from vidgen.process import endings, ranks, runtime
endings.end_on_error()
runtime.start(heartbeat_seconds=20)
"""


def run_several(code, count, **env):
    """[(exit code, stdout, stderr)] of each process, and the seconds that all of them took."""
    started = [processes.spawn(START + code, **place, **env) for place in processes.several(count)]
    begin = time.monotonic()
    texts = [process.communicate(timeout=120) for process in started]
    ends = [(p.returncode, *text) for p, text in zip(started, texts, strict=True)]
    return ends, time.monotonic() - begin


def test_one_process_alone_agrees_with_itself():
    assert ranks.gather("x", "mine") == ["mine"]
    ranks.agree({"a": 1})
    assert (ranks.count(), ranks.index()) == (1, 0)


def test_all_get_the_values_of_all_in_their_order():
    ends, _ = run_several(
        """
me = str(ranks.index())
print([ranks.gather("a", me), ranks.gather("a", me * 2), ranks.gather("b", "x"), ranks.count()])
ranks.agree({"seed": 1})
""",
        3,
    )
    for code, out, err in ends:
        assert code == 0, err
        assert eval(out) == [["0", "1", "2"], ["00", "11", "22"], ["x"] * 3, 3]


def test_values_that_all_have_read_do_not_stay_in_the_service():
    ends, _ = run_several(
        """
for number in range(5):
    assert ranks.gather("a", str(number)) == [str(number)] * 2
ranks.meet("over")
print([len(ranks._found(f"vidgen/a/{number}")) for number in range(5)])
ranks.meet("read")
""",
        2,
    )
    for code, out, err in ends:
        assert code == 0, err
        assert out.splitlines()[-1] == "[0, 0, 0, 0, 2]"


def test_different_facts_are_refused_by_all_with_who_has_what():
    ends, _ = run_several(
        """
ranks.agree({"same": 1, "seed": 5 if ranks.index() == 2 else 0})
""",
        3,
    )
    for code, _, err in ends:
        assert code == exit_codes.REFUSED, err
        assert re.search(r"seed: 0 on process 0 on \S+, process 1 on \S+; 5 on process 2 on", err)
        assert "  same: " not in err and "Traceback" not in err


def test_who_does_not_come_is_named():
    ends, seconds = run_several(
        """
if ranks.index() == 1:
    time.sleep(8)
else:
    ranks.gather("start", "", 2)
""",
        3,
    )
    assert [code for code, *_ in ends] == [exit_codes.ERROR] * 3
    assert all("process 1 on" in err and "did not come to 'start'" in err for _, _, err in ends)
    assert seconds < 30


@pytest.mark.parametrize("which", [0, 1])
def test_the_end_of_one_is_the_end_of_all_with_its_code_and_reason(which):
    ends, _ = run_several(
        f"""
if ranks.index() == {which}:
    time.sleep(1)
    error = RuntimeError("the disk is full")
    error.exit_code = {exit_codes.STORAGE}
    raise error
time.sleep(60)
""",
        3,
    )
    assert [code for code, *_ in ends] == [exit_codes.STORAGE] * 3
    for process, (_, _, err) in enumerate(ends):
        assert "the disk is full" in err and "Traceback" not in err
        assert (f"process {which} on" in err) == (process != which)


def test_an_error_that_follows_from_another_end_tells_of_that_first():
    ends, _ = run_several(
        f"""
if ranks.index() == 1:
    error = RuntimeError("first")
    error.exit_code = {exit_codes.DATA}
    raise error
time.sleep(1)
raise ValueError("it follows")
""",
        2,
    )
    assert [code for code, *_ in ends] == [exit_codes.DATA] * 2
    assert "process 1 on" in ends[0][2] and "first" in ends[0][2] and "Traceback" not in ends[0][2]


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_others(which):
    started = [
        processes.spawn(
            START
            + """
import jax.numpy as jnp
from jax.experimental import multihost_utils
while True:
    multihost_utils.process_allgather(jnp.ones(3))
    print("round", flush=True)
    time.sleep(0.05)
""",
            **place,
        )
        for place in processes.several(3)
    ]
    for process in started:
        assert any(line == "round\n" for line in process.stdout)
    started[which].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    texts = [process.communicate(timeout=60)[1] for process in started]
    assert time.monotonic() - begin < 15
    others = [i for i in range(3) if i != which]
    assert all(started[i].returncode not in (0, None) for i in others)
    if which:  # the first process is known by the service that it holds, and its end is JAX's
        assert any(f"process {which} on" in texts[i] and "not answer" in texts[i] for i in others)


def test_the_first_process_goes_after_one_that_is_still_taking_leave():
    ends, _ = run_several(
        """
if ranks.index() == 2:
    ranks._left.set()  # hears nothing
    time.sleep(8)
if ranks.index() == 1:
    end = ranks.farewell(76, "stuck")  # waits for process 2
    time.sleep(1.5)
    ranks.leave(end.code)
time.sleep(8)
""",
        3,
    )
    assert [code for code, *_ in ends[:2]] == [76, 76], ends


def test_an_end_is_written_as_one_line_of_json():
    end = ranks.End(1, "host", 78, "full")
    assert json.loads(json.dumps(end.__dict__))["code"] == 78
    assert str(end) == "process 1 on host ended the run with 78: full"
