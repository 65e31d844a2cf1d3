"""Match and aesthetic scores follow their definitions, on small CLIP models with random weights."""

import io
import itertools
import json
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from data_pipelines.stages import clip_scores
from tests.moving_textures import camera_move


def test_without_pytorch_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "vidgen\[torch\]"'):
        clip_scores.Scorer(tmp_path)


def test_an_aesthetic_head_is_read_from_safetensors_and_has_to_fit(tmp_path):
    layers = random_head(tmp_path / "head.safetensors", (7, 5, 1))
    found = clip_scores._read_mlp(tmp_path / "head.safetensors", False)
    for (weight, bias), (wanted_weight, wanted_bias) in zip(found, layers, strict=True):
        np.testing.assert_array_equal(weight, wanted_weight)
        np.testing.assert_array_equal(bias, wanted_bias)
    clip_scores._check_mlp(found, 7, "head")
    with pytest.raises(ValueError, match="8 features"):
        clip_scores._check_mlp(found, 8, "head")
    (tmp_path / "head.pth").write_bytes(b"")
    for name, match in (("none.safetensors", "not there"), ("head.pth", "pickle.*allow_pickle")):
        with pytest.raises(ValueError, match=match):
            clip_scores._read_mlp(tmp_path / name, False)
    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no tensors layers.N.weight"):
        clip_scores._read_mlp(tmp_path / "other.safetensors", False)


def random_head(path, widths):
    """Writes layers 0, 2, 4 ... as the published head, which has dropout between, names them."""
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in itertools.pairwise(widths)
    ]
    tensors = {}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {f"layers.{2 * i}.weight": weight, f"layers.{2 * i}.bias": bias}
    safetensors.numpy.save_file(tensors, path)
    return layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model of a few thousand parameters, with a tokenizer of letters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=common
        | {"vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=common | {"image_size": 24, "patch_size": 8},
        projection_dim=10,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)
    random_head(folder / "head.safetensors", (10, 6, 4, 1))
    return folder


@pytest.fixture(scope="module")
def stills():
    return [[*camera_move(3, 40, 60, right=4, seed=i)] for i in range(5)]


def test_scores_are_what_their_definitions_say(folder, stills):
    import torch
    import transformers

    texts = ["a dog", "two cats run", "b", "long " * 20, "a dog"]
    scorer = clip_scores.Scorer(folder, folder / "head.safetensors", batch_size=4)
    scores = scorer(stills, texts)
    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    head = safetensors.numpy.load_file(folder / "head.safetensors")
    for i, (pictures, caption) in enumerate(zip(stills, texts, strict=True)):
        with torch.no_grad():
            out = model(
                **tokenizer([caption], truncation=True, max_length=12, return_tensors="pt"),
                **processor([Image.fromarray(p) for p in pictures], return_tensors="pt"),
            )
        assert scores["match"][i] == pytest.approx(float(out.logits_per_image[1, 0]), rel=1e-2)
        value = out.image_embeds.numpy()
        for n in (0, 2, 4):
            value = value @ head[f"layers.{n}.weight"].T + head[f"layers.{n}.bias"]
        assert scores["aesthetic"][i] == pytest.approx(float(value.mean()), rel=1e-2)


def test_batches_jpeg_files_and_missing_parts_change_no_score(folder, stills):
    whole = clip_scores.Scorer(folder, folder / "head.safetensors")(stills, ["a"] * 5)
    part = clip_scores.Scorer(folder, folder / "head.safetensors", batch_size=2)
    mixed = part([stills[0], [], stills[2]], ["a", "a", None])
    np.testing.assert_allclose(mixed["match"], [whole["match"][0], np.nan, np.nan], rtol=1e-5)
    wanted = [whole["aesthetic"][0], np.nan, whole["aesthetic"][2]]
    np.testing.assert_allclose(mixed["aesthetic"], wanted, rtol=1e-5)
    buffer = io.BytesIO()
    Image.fromarray(stills[0][0]).save(buffer, format="JPEG", quality=95)
    as_file = part([[buffer.getvalue()]], ["a"])
    as_array = part([[stills[0][0]]], ["a"])
    assert as_file["aesthetic"][0] == pytest.approx(as_array["aesthetic"][0], rel=0.05)


def test_rows_get_scores_and_those_left_out_none(folder, stills):
    scorer = clip_scores.Scorer(folder)
    rows = [
        {"id": "a", "stills": stills[0], "text": "x", "caption": "a dog"},
        {"id": "b", "stills": stills[1], "text": "a dog", "status": "left out"},
        {"id": "c", "text": "a dog"},
        {"id": "d", "stills": stills[3], "text": "a dog"},
    ]
    found = list(scorer.score_rows(rows, clips=3))
    wanted = scorer([stills[0], stills[3]], ["a dog", "a dog"])["match"]
    assert [row.get("match") for row in found] == [
        pytest.approx(wanted[0], rel=1e-5),
        None,
        None,
        pytest.approx(wanted[1], rel=1e-5),
    ]
    assert "aesthetic" not in found[0]


def test_pickles_are_read_only_when_allowed(folder, stills, tmp_path):
    import torch

    tensors = safetensors.numpy.load_file(folder / "head.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="allow_pickle"):
        clip_scores.Scorer(folder, tmp_path / "head.pth")
    one = clip_scores.Scorer(folder, tmp_path / "head.pth", allow_pickle=True)
    other = clip_scores.Scorer(folder, folder / "head.safetensors")
    np.testing.assert_array_equal(
        one(stills, ["a"] * 5)["aesthetic"], other(stills, ["a"] * 5)["aesthetic"]
    )
    with pytest.raises(ValueError, match="no config.json"):
        clip_scores.Scorer(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="model.safetensors"):
        clip_scores.Scorer(tmp_path)
