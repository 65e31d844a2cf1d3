"""A run is told of as it stands, beside a run that goes on and whatever its files hold."""

import json
import shutil

import pytest

from tests import toy_runs
from vidgen import status
from vidgen.process import exit_codes


@pytest.fixture
def run(tmp_path):
    return toy_runs.autoencoder(tmp_path / "run")


def test_checkpoints_events_and_time_are_told(run):
    (run / "events.jsonl").write_text('{"event": "refused", "step": 7, "clips": {}}\n[1]\n{"ev')
    (run / "ledger").mkdir()
    head = {"at": 0.0, "step": 0, "spent": {}, "started": 1.0, "process": 0, "host": "a"}
    last = {"at": 4.0, "step": 2, "phase": "step", "spent": {"step": 3, "data": 1}, "end": 0}
    (run / "ledger/1-0.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(last)}\n")
    text, is_sound = status.describe(run, verify=True)
    assert is_sound and "checkpoint 2: sound" in text
    assert "1 x refused" in text and "event refused, step 7" in text
    assert "75.00% of the time brought the run forward." in text


def test_damage_is_told(run):
    next((run / "checkpoints/2").rglob("d/*")).write_bytes(b"0")
    text, is_sound = status.describe(run, verify=True)
    assert not is_sound and "checkpoint 2: DAMAGED: " in text
    assert status.describe(run, verify=False)[1]
    assert exit_codes.STORAGE == 78


def test_a_checkpoint_that_goes_meanwhile_is_no_damage(run, monkeypatch):
    real = status.digests.verify

    def verify(folder):
        shutil.rmtree(folder)
        return real(folder)

    monkeypatch.setattr(status.digests, "verify", verify)
    assert status.describe(run, verify=True) == ("no checkpoint yet", True)


def test_an_empty_ledger_hides_nothing_else(run):
    (run / "ledger").mkdir()
    (run / "ledger/1-0.jsonl").touch()
    assert "checkpoint 2: not looked at" in status.describe(run, verify=False)[0]
