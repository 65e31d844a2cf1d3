"""Folders of PyTorch weights for tests, and the converter's command."""

import json
import subprocess
import sys

import numpy as np
import safetensors.numpy

from tests import processes
from vidgen.weights import layouts, torch_files


def run_command(*arguments):
    line = [sys.executable, "-m", "vidgen.convert", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=processes.ROOT, check=False)


def write_folder(folder, tensors, config=None, shards=1):
    """A folder of published weights; several shards have an index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    files = {f"model-{i + 1}.safetensors": names[i::shards] for i in range(shards)}
    for file, part in files.items():
        save = {name: np.ascontiguousarray(tensors[name]) for name in part}
        safetensors.numpy.save_file(save, folder / file)
    if shards > 1:
        places = {name: file for file, part in files.items() for name in part}
        index = json.dumps({"weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_folder(folder):
    return {name: entry.read() for name, entry in torch_files.read_headers(folder).items()}


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def random_tensors(layout, arguments, rng, dtype=np.float32):
    layout = layouts.LAYOUTS[layout]
    tensors = layout.tensors(layout.our_shapes(arguments), arguments)
    draw = lambda shape: np.asarray(rng.normal(size=shape), dtype)
    return {t.name: draw(t.shape) for t in tensors}


def tiny_stdit(tmp_path, change=lambda tensors: None, **extra):
    """A folder of a small STDiT, after `change` of its tensors."""
    arguments = {"width": 8, "depth": 1, "heads": 2, "text_width": 6, "text_tokens": 3}
    tensors = random_tensors("stdit", arguments, np.random.default_rng(0))
    config = layouts.LAYOUTS["stdit"].config(arguments)
    change(tensors)
    return write_folder(tmp_path / "in", tensors, config | extra)
