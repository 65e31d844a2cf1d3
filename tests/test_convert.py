"""Weights go from PyTorch's layouts to ours and back, bit for bit."""

import hashlib
import json

import golden_utils
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from tests import toy_runs
from tests.weight_folders import (
    assert_same_bits,
    random_tensors,
    read_folder,
    run_command,
    tiny_stdit,
    write_folder,
)
from vidgen import convert
from vidgen.models import layers
from vidgen.training import checkpoint
from vidgen.weights import layouts, published, torch_names, tree_files

CASES = {"stdit3_tiny": "stdit", "vae_pipeline_tiny": "vae", "t5_encoder_tiny": "t5"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_golden_state_dict_comes_back_bit_for_bit(tmp_path, name, dtype, shards):
    case = golden_utils.load_case(name)
    tensors = {k: np.asarray(v, dtype) for k, v in case.state_dict().items()}
    source = write_folder(tmp_path / "in", tensors, case.config, shards)
    convert.to_vidgen(str(source), CASES[name], tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out", shard_bytes=2**20 // shards)
    assert_same_bits(read_folder(tmp_path / "out"), tensors)
    imported = tree_files.flatten(checkpoint.load_params(tmp_path / "ours"))
    direct = published.open_source(source, CASES[name]).load()
    assert_same_bits(imported, tree_files.flatten(direct))
    again = published.open_source(tmp_path / "out", CASES[name])  # its own config.json is enough
    assert again.shapes == published.open_source(source, CASES[name]).shapes


@pytest.mark.parametrize("name", ["rflow", "train_steps"])
def test_state_dicts_of_other_sizes_come_back_bit_for_bit_without_a_config(tmp_path, name):
    case = golden_utils.load_case(name)
    source = write_folder(tmp_path / "in", case.state_dict())  # sizes follow from the shapes
    convert.to_vidgen(str(source), "stdit", tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out")
    assert_same_bits(read_folder(tmp_path / "out"), case.state_dict())
    config = json.loads((tmp_path / "out/config.json").read_text())
    shared = config.keys() & case.config["model"].keys() - {"freeze_y_embedder"}
    assert len(shared) > 10
    assert {k: config[k] for k in shared} == {k: case.config["model"][k] for k in shared}


def test_the_tensors_of_single_modules_come_back_bit_for_bit():
    state = golden_utils.load_case("stdit3_parts").state_dict()
    state.pop("patch_embed_t2.proj.weight")  # patches of two latent frames, which we refuse
    kinds = {5: "patch", 2: "kernel", 1: "as is"}
    for name, value in state.items():
        kind = "as is" if name.endswith("table") else kinds[value.ndim]
        tensor = torch_names.Tensor(name, value.shape, name, kind=kind)
        ours = np.ascontiguousarray(tensor.to_ours(value))
        assert ours.shape != value.shape or kind == "as is" or value.shape[0] == value.shape[1]
        assert tensor.to_torch(ours).tobytes() == value.tobytes(), name


HALVES = {
    "vae_spatial_tiny": ("image_vae", "temporal"),
    "vae_temporal_tiny": ("temporal_vae", "spatial"),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_half_of_the_vae_goes_in_and_out_alone(tmp_path, name):
    case, (layout, other) = golden_utils.load_case(name), HALVES[name]
    pipeline = golden_utils.load_case("vae_pipeline_tiny")
    shapes = {k: v.shape for k, v in pipeline.state_dict().items()}
    small = layouts.LAYOUTS["vae"].arguments(pipeline.config, shapes)
    tensors = {k.removeprefix("module."): v for k, v in case.state_dict().items()}
    config = case.config.get("autoencoder_kl", case.config) | {"vidgen": {other: small[other]}}
    source = write_folder(tmp_path / "in", tensors, config)
    convert.to_vidgen(str(source), layout, tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out", layout=layout)
    assert_same_bits(read_folder(tmp_path / "out"), tensors)
    written = json.loads((tmp_path / "out/config.json").read_text())
    shared = written.keys() & config.keys() - {"vidgen", "sample_size", "scaling_factor"}
    assert len(shared) > 4 and {k: written[k] for k in shared} == {k: config[k] for k in shared}
    convert.to_vidgen(str(tmp_path / "out"), layout, tmp_path / "again")  # its own config will do
    convert.to_open_sora(tmp_path / "again", tmp_path / "whole")
    whole = read_folder(tmp_path / "whole")
    assert {k.split(".")[0] for k in whole} == {"spatial_vae", "temporal_vae", "scale", "shift"}
    with pytest.raises(ValueError, match="--layout=stdit: .* is of layout vae, leave it out"):
        convert.to_open_sora(tmp_path / "ours", tmp_path / "wrong", layout="stdit")


def test_an_image_autoencoder_starts_a_video_vae_also_by_its_older_names(tmp_path):
    case = golden_utils.load_case("vae_spatial_tiny")
    modern = {k.removeprefix("module."): v for k, v in case.state_dict().items()}
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name):
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        return name

    config = case.config["autoencoder_kl"]
    groups = {"vae_temporal": {"groups": 4}}
    loaded = []
    for i, tensors in enumerate((modern, {old_name(k): v for k, v in modern.items()})):
        source = write_folder(tmp_path / str(i), tensors, config | groups)
        opened = published.open_source(source, "image_vae")
        spatial = {p: v for p, v in opened.shapes.items() if p.startswith("spatial/")}
        assert {t.path for t in opened.tensors} == set(spatial)
        loaded.append({t.name: opened._read(t) for t in opened.tensors})
    assert_same_bits(loaded[1], loaded[0])
    assert_same_bits(
        {k.removeprefix("spatial_vae.module."): v for k, v in loaded[0].items()}, modern
    )


def random_stdit(rng):
    heads = int(rng.integers(1, 4))
    patch = tuple(int(n) for n in rng.integers(1, 4, 2))
    return {
        "width": heads * 4 * int(rng.integers(1, 4)),
        "depth": int(rng.integers(1, 4)),
        "heads": heads,
        "patch": patch,
        "in_channels": int(rng.integers(1, 6)),
        "text_width": int(rng.integers(2, 9)),
        "text_tokens": int(rng.integers(2, 7)),
        "predict_sigma": bool(rng.integers(2)),
        "qk_norm": bool(rng.integers(2)),
        "mlp_ratio": float(rng.choice([2.0, 4.0])),
    }


def check_patches(params, tensors, arguments, rng):
    """The first layer equals a convolution with the file's weight, written out as a sum."""
    h, w = arguments["patch"]
    latent = rng.normal(size=(1, 2, 2 * h, 3 * w, arguments["in_channels"])).astype(np.float32)
    weight = tensors["x_embedder.proj.weight"][:, :, 0]
    cells = latent.reshape(1, 2, 2, h, 3, w, -1)
    expected = np.einsum("xtahbwc,dchw->xtabd", cells, weight).reshape(1, 2, 6, -1)
    got = layers.patchify(latent, (h, w)) @ params["x_embedder"]["kernel"]
    np.testing.assert_allclose(got, expected, atol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes_come_back_and_keep_their_forward_pass(tmp_path, seed):
    rng = np.random.default_rng(seed)
    arguments = random_stdit(rng)
    layout = layouts.LAYOUTS["stdit"]
    tensors = random_tensors("stdit", arguments, rng)
    source = write_folder(tmp_path / "in", tensors, layout.config(arguments))
    convert.to_vidgen(str(source), "stdit", tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out")
    assert_same_bits(read_folder(tmp_path / "out"), tensors)
    params = tree_files.load_file(tmp_path / "ours/weights.safetensors")
    direct = published.open_source(tmp_path / "out", "stdit").load()
    assert_same_bits(tree_files.flatten(direct), tree_files.flatten(params))
    check_patches(params, tensors, arguments, rng)
    graph = nnx.graphdef(nnx.eval_shape(lambda: layout.model(**arguments, rngs=nnx.Rngs(0))))
    cells = np.prod(arguments["patch"]) * arguments["in_channels"]
    out = nnx.merge(graph, jax.tree.map(jnp.asarray, params))(
        jnp.ones((1, 2, 3, cells)),
        jnp.ones(1),
        jnp.ones((1, 2, arguments["text_width"])),
        text_length_B=jnp.array([2]),
        position_BS2=jnp.zeros((1, 3, 2)),
        length_B=jnp.array([3]),
        fps_B=jnp.array([24.0]),
    )
    assert out.shape == (1, 2, 3, cells * (1 + arguments["predict_sigma"]))
    assert np.isfinite(out).all()


def test_pixart_fills_the_spatial_part_and_the_rest_starts_anew(tmp_path):
    arguments = {"width": 144, "depth": 2, "heads": 2, "text_width": 6, "text_tokens": 300}
    rng = np.random.default_rng(0)
    whole = random_tensors("stdit", arguments | {"qk_norm": False}, rng)
    tensors = {
        name.replace("spatial_blocks.", "blocks."): value
        for name, value in whole.items()
        if not name.startswith(("temporal_blocks", "fps_embedder", "rope"))
    }
    tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :, 0]
    tensors["y_embedder.y_embedding"] = tensors["y_embedder.y_embedding"][:120]  # of PixArt-alpha
    tensors |= {"pos_embed": np.zeros((1, 4, 144), np.float32)}
    tensors |= {"csize_embedder.mlp.0.bias": np.zeros(4, np.float32)}
    convert.to_vidgen(str(write_folder(tmp_path / "in", tensors)), "pixart", tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out")
    got = read_folder(tmp_path / "out")
    for name, value in tensors.items():
        if name.startswith("blocks."):
            np.testing.assert_array_equal(got[f"spatial_{name}"], value)
    null = got["y_embedder.y_embedding"]
    np.testing.assert_array_equal(null[:120], tensors["y_embedder.y_embedding"])
    np.testing.assert_array_equal(null[120:], np.repeat(null[119:120], 180, 0))
    assert not got["temporal_blocks.1.attn.proj.weight"].any()  # the identity at first
    assert got["temporal_blocks.1.attn.qkv.weight"].std() > 0
    np.testing.assert_array_equal(got["spatial_blocks.1.attn.q_norm.weight"], 1)
    np.testing.assert_allclose(got["rope.freqs"], layers.rope_frequencies(72))


def test_rotary_frequencies_may_be_missing_and_the_files_own_are_kept(tmp_path):
    source = tiny_stdit(tmp_path, lambda tensors: tensors.pop("rope.freqs"))
    tree = published.open_source(source, "stdit").load()
    np.testing.assert_array_equal(tree["rope_freqs"], layers.rope_frequencies(4))
    own = np.full(2, 0.25, np.float32)
    source = tiny_stdit(tmp_path, lambda tensors: tensors.update({"rope.freqs": own}))
    tree = published.open_source(source, "stdit").load()
    np.testing.assert_array_equal(tree["rope_freqs"], own)


def test_a_run_becomes_a_folder_with_config_card_and_checksums(tmp_path):
    run = toy_runs.text_to_video(tmp_path)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/0000-a-dog.mp4").write_bytes(b"video")
    done = run_command(
        *("--to=open-sora", f"--source={run}", f"--out={tmp_path}/out"),
        *("--dtype=bfloat16", "--license=apache-2.0", f"--samples={tmp_path}/samples"),
    )
    assert done.returncode == 0, done.stderr
    out, params = tmp_path / "out", checkpoint.load_params(run)
    got = read_folder(out)
    assert got["t_block.1.weight"].dtype == ml_dtypes.bfloat16
    expected = params["t_block"]["kernel"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got["t_block.1.weight"], expected)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "STDiT3" and config["hidden_size"] == 16
    card = (out / "README.md").read_text()
    for part in ("license: apache-2.0", "update 4 of", "moving average", "0000-a-dog.mp4", '"lr"'):
        assert part in card
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    published.open_source(out, "stdit")
    convert.to_open_sora(run, tmp_path / "raw", weights="params", step=2)
    assert "those after update 2" in (tmp_path / "raw/README.md").read_text()


def test_a_vae_run_is_exported_with_its_sizes(tmp_path):
    run = toy_runs.autoencoder(tmp_path / "run")
    convert.to_open_sora(run, tmp_path / "out")
    tree = published.open_source(tmp_path / "out", "vae").load()
    assert_same_bits(tree_files.flatten(tree), tree_files.flatten(checkpoint.load_params(run)))


def test_a_small_t5_equals_that_of_transformers_and_goes_back_to_it(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=4, dropout_rate=0.0
    )
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = (
        "gated-gelu",
        True,
        "gelu_new",
    )
    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(config).eval()
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    rng = np.random.default_rng(0)
    ids_BL, mask_BL = rng.integers(2, 50, (2, 9)), np.arange(9)[None] < np.array([[9], [4]])
    with torch.no_grad():
        call = lambda model: model(torch.tensor(ids_BL), torch.tensor(mask_BL.astype(int)))[
            0
        ].numpy()
        expected = call(theirs)
    source = published.open_source(published.find(str(tmp_path / "in")), "t5")
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: source.layout.model(**source.arguments, rngs=nnx.Rngs(0)))
    )
    model = nnx.merge(graph, source.load(lambda path, value: jnp.asarray(value)))
    np.testing.assert_allclose(model(ids_BL, mask_BL), expected, atol=2e-5)  # float32, 3 layers
    convert.to_vidgen(str(tmp_path / "in"), "t5", tmp_path / "ours")
    convert.to_open_sora(tmp_path / "ours", tmp_path / "out")
    back = transformers.T5EncoderModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(call(back), expected)
