"""Peak memory and time of converting a random full-size STDiT3-XL/2 in bfloat16, there and back.

    python -m tests.measure_convert FOLDER [docs/benchmarks/convert.json]

FOLDER takes three copies of 2.4 GB, which are removed. Checks that every tensor comes back.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from vidgen.process import machine
from vidgen.weights import layouts, torch_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
XL = {"width": 1152, "depth": 28, "heads": 16, "text_width": 4096, "text_tokens": 300}


def make(folder: pathlib.Path) -> int:
    """Writes random weights; returns the bytes of the file."""
    layout = layouts.LAYOUTS["stdit"]
    tensors = layout.tensors(layout.our_shapes(XL), XL)
    rng = np.random.default_rng(0)
    path = folder / "model.safetensors"
    with torch_files.Writer(path, {t.name: ("BF16", t.shape) for t in tensors}) as writer:
        for tensor in tensors:
            value = rng.standard_normal(tensor.shape, np.float32)
            writer.add(tensor.name, value.astype(ml_dtypes.bfloat16))
    (folder / "config.json").write_text(json.dumps(layout.config(XL)))
    return path.stat().st_size


def run(*arguments) -> dict[str, float]:
    """Seconds and peak bytes of a process of the converter."""
    code = "import runpy, sys, resource, atexit\n"
    code += "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    code += "atexit.register(lambda: print(peak(), file=sys.stderr))\n"
    code += "sys.argv[0] = 'convert'; runpy.run_module('vidgen.convert', run_name='__main__')"
    start = time.perf_counter()
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_bytes": int(done.stderr.split()[-1])}


def main(folder: str, report: str = "") -> None:
    work = pathlib.Path(folder) / "convert"
    work.mkdir(parents=True)
    try:
        (work / "in").mkdir()
        size = make(work / "in")
        found = {"tensors": 973, "file_bytes": size, "machine": machine.describe()}
        target = "--to=vidgen", "--layout=stdit", f"--source={work}/in", f"--out={work}/ours"
        found["import"] = run(*target)
        found["export"] = run("--to=open-sora", f"--source={work}/ours", f"--out={work}/out")
        for part in ("import", "export"):
            found[part]["peak_share_of_file"] = round(found[part]["peak_bytes"] / size, 3)
        before, after = (torch_files.read_headers(work / name) for name in ("in", "out"))
        assert before.keys() == after.keys() and len(before) == 973
        for name in before:
            assert before[name].read().tobytes() == after[name].read().tobytes(), name
        found["bit_equal"] = True
    finally:
        shutil.rmtree(work)
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if report:
        pathlib.Path(report).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
