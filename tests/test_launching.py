"""The parts of the launcher that need no process: messages, choices, bad hosts, addresses."""

import os
import signal
import socket
import stat
import time
from types import SimpleNamespace

import pytest

from vidgen.launching import address, channel, ended, leader, records
from vidgen.launching.ended import Ended
from vidgen.process import exit_codes, locks


def machines(names):
    return [SimpleNamespace(host=name) for name in names]


@pytest.mark.parametrize(
    "before, there, wanted, bad, chosen",
    [
        ("", "a", 1, "", "a"),
        ("", "ab", 3, "", None),
        ("", "abcd", 3, "", "abc"),
        ("abc", "acd", 3, "", "adc"),  # the spare takes the place of b
        ("abc", "abcd", 3, "b", "adc"),
        ("abc", "abc", 3, "b", "abc"),  # nobody else is there
        ("abc", "cbad", 3, "", "abc"),
        ("abc", "dabc", 3, "a", "dbc"),  # the leader's own machine may be bad too
        ("ab", "aab", 2, "", "ab"),
        ("ab", "aa", 2, "", None),  # two supervisors of one host
        ("abc", "abcde", 3, "abd", "ecX"),
    ],
)
def test_machines_keep_their_places_and_spares_come_in(before, there, wanted, bad, chosen):
    there = machines(there)
    known = {machine.host: machine for machine in there}
    old = [known.get(host) or SimpleNamespace(host=host) for host in before]
    found = leader.choose(old, there, wanted, set(bad))
    if chosen == "ecX":  # two good ones, and one of the bad
        assert {"c", "e"} < {machine.host for machine in found}
        assert found[2].host == "c"
        return
    assert (found and "".join(machine.host for machine in found)) == chosen


def failures(*starts, host="b", gained=False):
    return [{"host": host, "start": start, "gained": gained} for start in starts]


@pytest.mark.parametrize(
    "lines, number, bad",
    [
        (failures(1), 2, set()),
        (failures(1, 2), 3, {"b"}),
        (failures(1, 3), 4, set()),
        (failures(1, 2, gained=True), 3, set()),
        (failures(1, 5, 9), 10, {"b"}),
        (failures(1, 5, 9, gained=True), 10, {"b"}),
        (failures(1, 5, 9), 12, set()),  # the first is too long ago
        (failures(1, 2), 4, set()),  # another start went better
        (failures(1, 2) + failures(1, 2, host="c"), 3, {"b", "c"}),
    ],
)
def test_a_host_is_bad_after_two_in_a_row_or_three_of_ten(lines, number, bad):
    assert records.bad_hosts(lines, number) == bad


def test_torn_lines_of_bad_hosts_are_passed_over(tmp_path):
    account = records.Records(tmp_path)
    account.lock()
    for number in (1, 2):
        account.add_host(Ended(-9, 0, "b"), number, has_gained=False)
    with open(account.folder / "hosts.jsonl", "a") as file:
        file.write('[]\n{"host": 3}\n{"host": "c", "start": "x", "gained": 0}\n{"ho')
    assert account.bad_hosts(3) == {"b"}


@pytest.mark.parametrize(
    "ends, first",
    [
        ([Ended(1, 0), Ended(-9, 1)], 1),  # the error follows from the kill
        ([Ended(-6, 0), Ended(76, 1)], 1),
        ([Ended(77, 0), Ended(77, 1)], 0),
        ([Ended(1, 0), Ended(1, 1, lost="no word")], 1),
        ([Ended(1, 0), Ended(-6, 1)], 0),
    ],
)
def test_a_cause_goes_before_what_may_follow_from_it(ends, first):
    assert ended.first(ends) is ends[first]


def test_the_others_are_given_time_only_where_they_were_told():
    assert Ended(77).was_told and not Ended(-9).was_told and not Ended(1, lost="x").was_told
    assert str(Ended(-signal.SIGSEGV, 3, "b")) == "process 3 on b ended first, by SIGSEGV"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"[]",
        b"3",
        b"{}",
        b'{"kind": {}}',
        b'{"kind": "go"}',
        b'{"kind": "port"}',
        b'{"kind": "port", "port": "1"}',
        b'{"kind": "finish", "code": 0, "text": "\\ud800"}',
        b'{"kind": "challenge", "nonce": null}',
        b"\xff",
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_what_is_no_message_is_a_value_error(line):
    with pytest.raises(ValueError):
        channel.parse(line)


def pair():
    return map(channel.Channel, socket.socketpair())


def test_messages_come_whole_and_in_order_however_they_are_cut():
    ours, theirs = pair()
    for port in range(200):
        ours.send("port", port=port)
    found = []
    while len(found) < 200:
        ours.flush()
        found += theirs.receive()
    assert [message["port"] for message in found] == list(range(200))


def test_the_last_messages_of_a_side_that_closes_are_heard():
    ours, theirs = pair()
    ours.send("gone")
    ours.close("the end")
    assert [message["kind"] for message in theirs.receive()] == ["gone"]
    assert theirs.receive() == [] and theirs.closed == "its connection was closed"
    theirs.send("beat")
    theirs.flush()


def test_a_side_that_does_not_read_is_given_up():
    ours, _theirs = pair()
    for _ in range(40):
        ours.send("finish", code=0, text="x" * 100_000)
    assert ours.closed == "it does not read what it is sent"


def test_silence_counts_only_while_this_side_is_awake():
    ours, _theirs = pair()
    time.sleep(1.3)
    ours.tend(1.1)  # stopped meanwhile, as far as it can tell
    assert not ours.closed
    for _ in range(30):
        time.sleep(0.05)
        ours.tend(1.1)
    assert ours.closed == "no word from it for 1.1 s"


def test_a_proof_is_of_one_side_and_one_connection():
    given = channel.proof("secret", "machine", "1", "2")
    assert channel.is_proof(given, "secret", "machine", "1", "2")
    for other in (("other", "machine", "1", "2"), ("secret", "leader", "1", "2")):
        assert not channel.is_proof(given, *other)
    assert not channel.is_proof(given, "secret", "machine", "1", "3")


@pytest.mark.parametrize(
    "text, place",
    [("node-0:29400", ("node-0", 29400)), ("[fd00::2]:1", ("fd00::2", 1))],
)
def test_an_address_is_read_and_written(text, place):
    assert address.parse(text) == place and address.join(*place) == text


@pytest.mark.parametrize("text", ["", "node", "node:", ":1", "node:0", "node:65536", "fd00::2:1"])
def test_a_wrong_address_is_refused(text):
    with pytest.raises(ValueError, match="does not fit"):
        address.parse(text)


def test_of_several_supervisors_here_the_first_leads():
    first = address.listen("127.0.0.1", 0)
    with first:
        port = first.getsockname()[1]
        assert address.listen("127.0.0.1", port) is None
        with pytest.raises(OSError, match="in use"):
            address.listen("127.0.0.1", port, lead="yes")
    with address.listen("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_a_machine_that_host_is_not_does_not_lead():
    assert address.listen("192.0.2.77", 9) is None  # an address for examples (RFC 5737)
    assert address.listen("no.such.host.invalid", 9) is None
    assert address.listen("127.0.0.1", 0, lead="no") is None


def test_a_name_of_this_machine_is_heard_from_outside(monkeypatch):
    """Debian and others write 127.0.1.1 beside the host's own name."""
    known = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)
    with address.listen("node-0", 0) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_the_token_is_made_once_and_kept_from_others(tmp_path, monkeypatch):
    monkeypatch.delenv("VIDGEN_LAUNCH_TOKEN", raising=False)
    (tmp_path / "launch").mkdir()
    with pytest.raises(OSError):
        records.token(tmp_path, is_leader=False)
    made = records.token(tmp_path, is_leader=True)
    path = tmp_path / "launch" / "token"
    assert records.token(tmp_path, is_leader=False) == made and len(made) == 64
    assert records.token(tmp_path, is_leader=True) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others can read it"):
        records.token(tmp_path, is_leader=True)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no token"):
        records.token(tmp_path, is_leader=True)
    monkeypatch.setenv("VIDGEN_LAUNCH_TOKEN", "given")
    assert records.token(tmp_path, is_leader=False) == "given"


def test_two_supervisors_do_not_lead_in_one_folder(tmp_path):
    first = records.Records(tmp_path)
    first.lock()
    with pytest.raises(ValueError, match=f"in use by launch {os.getpid()} on .* give another"):
        records.Records(tmp_path).lock()


def test_a_file_system_without_locks_is_let_pass(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    records.Records(tmp_path).lock()
    assert f"launch {os.getpid()} on" in (tmp_path / "launch/lock").read_text()


def test_an_error_of_the_leader_itself_is_told_to_all(capsys):
    told = []
    broken = SimpleNamespace(last_number=lambda: 1 / 0)
    meeting = SimpleNamespace(finish=lambda code, text: told.append((code, text)))
    flags = {"machines": 1, "give_up_after": 1, "wait_seconds": 0.0}
    leader.Leader(meeting, broken, **flags).go()
    assert told[0][0] == exit_codes.ERROR and "supervisor that leads has failed" in told[0][1]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_nothing_is_started_again_after_a_final_code_or_an_error_that_stays():
    assert exit_codes.REFUSED in leader.FINAL and exit_codes.HANG not in leader.FINAL
