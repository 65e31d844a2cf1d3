"""The bench measures a step, and what watching it costs, as a command."""

import json
import os
import subprocess
import sys

from tests import processes


def test_the_command_measures_steps_and_what_watching_them_costs(tmp_path):
    flags = [f"--config={processes.ROOT}/configs/tiny.py", "--repeats=4"]
    flags += [f"--config.snapshot.folder={tmp_path}/snapshots", "--config.snapshot.share=0.5"]
    found = []
    for more in ([], ["--watched"]):
        done = subprocess.run(
            [sys.executable, "-m", "vidgen.bench", *flags, *more, f"--out={tmp_path}/out.json"],
            cwd=processes.ROOT,
            env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "out.json").read_text())["rows"])
    steps, watched = found
    assert [row["bucket"] for row in steps] == [row["bucket"] for row in watched]
    assert all(row["step_seconds"] > 0 and row["model_flops"] > 0 for row in steps)
    for row in watched:
        assert row["snapshots"] > 0 and row["watch_share"] > 0 and row["watch_cpu_ratio"] > 0
    assert not list(tmp_path.glob("snapshots-*/*/*"))  # removed at the end
