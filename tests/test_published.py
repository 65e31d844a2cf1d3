"""Strangers' weights are judged before they are read: damage, lies, programs, other models."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.weight_folders import (
    assert_same_bits,
    read_folder,
    run_command,
    tiny_stdit,
    write_folder,
)
from vidgen import convert


def refuse(source, match, layout="stdit", **chosen):
    out = pathlib.Path(source).parent / "out"
    with pytest.raises(ValueError, match=match):
        convert.to_vidgen(str(source), layout, out, **chosen)
    assert not out.exists() and not list(out.parent.glob(".out*"))


def test_mismatches_are_listed_together_with_the_nearest_name(tmp_path):
    def change(tensors):
        tensors["spatial_blocks.0.mlp.fc1.wieght"] = tensors.pop("spatial_blocks.0.mlp.fc1.bias")
        tensors["t_block.1.bias"] = np.zeros(7, np.float32)
        del tensors["final_layer.linear.bias"]

    with pytest.raises(ValueError) as error:
        convert.to_vidgen(str(tiny_stdit(tmp_path, change)), "stdit", tmp_path / "out")
    message = str(error.value)
    for part in (
        "missing final_layer.linear.bias [32]",
        "missing spatial_blocks.0.mlp.fc1.bias [32]; nearest is spatial_blocks.0.mlp.fc1.wieght",
        "unexpected spatial_blocks.0.mlp.fc1.wieght [32]",
        "wrong shape t_block.1.bias [7], the model has [48]",
    ):
        assert part in message


def test_swapped_tensors_of_unlike_shapes_are_refused(tmp_path):
    def swap(tensors):
        one, other = "spatial_blocks.0.mlp.fc1.weight", "spatial_blocks.0.mlp.fc2.weight"
        tensors[one], tensors[other] = tensors[other], tensors[one]

    refuse(tiny_stdit(tmp_path, swap), "wrong shape spatial_blocks.0.mlp.fc1.weight")


def test_swapped_tensors_of_like_shapes_are_seen_by_the_checksums(tmp_path):
    convert.to_vidgen(str(tiny_stdit(tmp_path)), "stdit", tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "export")
    tensors = read_folder(tmp_path / "export")
    one, other = "spatial_blocks.0.attn.qkv.bias", "temporal_blocks.0.attn.qkv.bias"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    safetensors.numpy.save_file(tensors, tmp_path / "export/model.safetensors")
    refuse(tmp_path / "export", "model.safetensors in .* differ from SHA256SUMS")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value, dtype):
    def spoil(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)
        tensors["t_block.1.weight"][3, 4] = value

    refuse(
        tiny_stdit(tmp_path, spoil), "'t_block.1.weight' in .* holds 1 values that are no finite"
    )


def test_whole_numbers_are_no_weights(tmp_path):
    def change(tensors):
        tensors["t_block.1.bias"] = tensors["t_block.1.bias"].astype(np.int64)

    refuse(tiny_stdit(tmp_path, change), "'t_block.1.bias' as I64, which is no type of weights")


def edit_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def huge(header):
    header["t_block.1.bias"]["shape"] = [2**40, 2**20]


def overlap(header):
    header["t_block.1.bias"]["data_offsets"] = header["x_embedder.proj.bias"]["data_offsets"]


def beyond(header):
    header["t_block.1.bias"]["data_offsets"][1] += 10**12


def negative(header):
    header["t_block.1.bias"]["shape"] = [-48]


@pytest.mark.parametrize("change", [huge, overlap, beyond, negative])
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path, change):
    source = tiny_stdit(tmp_path)
    edit_header(source / "model-1.safetensors", change)
    refuse(source, "is no whole safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-7],
        lambda data: data + b"more",
        lambda data: data[:5],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"?" + data[9:],
        lambda data: (30000).to_bytes(8, "little") + b"[" * 30000,
        lambda data: b"",
    ],
    ids=["truncated", "bloated", "cut", "long header", "no json", "deep", "empty"],
)
def test_damaged_files_are_refused(tmp_path, change):
    source = tiny_stdit(tmp_path)
    path = source / "model-1.safetensors"
    path.write_bytes(change(path.read_bytes()))
    refuse(source, "is no whole safetensors file")


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    source = tiny_stdit(tmp_path)
    tensors = read_folder(source)
    (source / "model-1.safetensors").unlink()
    write_folder(source, tensors, shards=2)
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    outside = {name: f"../../{file}" for name, file in places.items()}
    index.write_text(json.dumps({"weight_map": outside}))
    refuse(source, "names files outside of its folder")
    lost = places | {"t_block.1.bias": "model-9.safetensors"}
    index.write_text(json.dumps({"weight_map": lost}))
    refuse(source, r"names the shards \['model-9.safetensors'\], which are missing")
    other = {
        "model-1.safetensors": "model-2.safetensors",
        "model-2.safetensors": "model-1.safetensors",
    }
    swapped = places | {"t_block.1.bias": other[places["t_block.1.bias"]]}
    index.write_text(json.dumps({"weight_map": swapped}))
    refuse(source, "disagrees with its shards:\n  t_block.1.bias: in model-")


class Canary:
    """A pickle of it writes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("allow", [False, True])
def test_a_pickle_that_is_a_program_never_runs(tmp_path, allow):
    torch = pytest.importorskip("torch")
    canary = tmp_path / "canary"
    torch.save({"t_block.1.bias": Canary(canary)}, tmp_path / "model.pth")
    reason = "UnpicklingError" if allow else "is a pickle, a program that runs when it is loaded"
    refuse(tmp_path / "model.pth", reason, allow_pickle=allow)
    assert not canary.exists()


def test_a_pickle_of_tensors_is_read_on_demand(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    source = tiny_stdit(tmp_path)
    tensors = read_folder(source)
    state = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in tensors.items()}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    convert.to_vidgen("model.pth", "stdit", "ours", allow_pickle=True)
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out")
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    assert_same_bits(read_folder(tmp_path / "out"), rounded)


def test_a_config_for_another_model_is_refused(tmp_path):
    refuse(tiny_stdit(tmp_path, depth=2), "missing spatial_blocks.1.attn.k_norm.weight")
    refuse(tiny_stdit(tmp_path, patch_size=[2, 2, 2]), "patches of one latent frame")
    refuse(tiny_stdit(tmp_path), "no tensor temporal_vae.* Choose another --layout", "vae")
    (tmp_path / "in/config.json").write_text("{")
    refuse(tmp_path / "in", "config.json is no JSON")


def test_what_is_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refuse(tmp_path / "none", "does not exist: give a path, or a hub id")
    with pytest.raises(ValueError, match="is no path here, and the hub did not give it"):
        convert.to_vidgen("nobody/nothing", "stdit", tmp_path / "out")
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="exists: remove it"):
        convert.to_vidgen("nobody/nothing", "stdit", tmp_path / "here")


def test_a_command_refuses_with_one_message(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"cos\nsystem\n.")
    done = run_command("--to=vidgen", f"--source={path}", f"--out={tmp_path}/out")
    assert done.returncode == 80
    assert done.stderr.startswith(f"convert: {path} is a pickle") and done.stderr.count("\n") == 1
