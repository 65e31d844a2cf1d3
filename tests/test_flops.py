"""Analytic FLOPs agree with what XLA counts in the compiled program."""

import jax
import jax.numpy as jnp
import pytest
from golden_utils import random_model

from vidgen.models import flops, text, vae, vae_spatial

SPATIAL = {"channels": (16, 32), "layers_per_block": 1, "groups": 8}
TEMPORAL = {"filters": 16, "channel_multipliers": (1, 2, 2), "temporal_downsample": (False, True)}
TEMPORAL |= {"num_res_blocks": 1, "groups": 8}
T5 = {"vocab_size": 64, "width": 64, "head_width": 16, "heads": 8, "mlp_width": 128, "depth": 1}


def xla_flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_encoder_and_decoder_of_the_autoencoder_cost_what_xla_counts():
    # of one chunk of 9 frames and a rest of 2, so a time stride of 2 gives 5 and 1 latent frames
    config = {"spatial": SPATIAL, "temporal": TEMPORAL, "chunk_frames": 9}
    model = random_model(lambda rngs: vae.VideoVAE(**config, rngs=rngs))
    video, z = jnp.zeros((1, 11, 32, 48, 3)), jnp.zeros((1, 6, 16, 24, 4))
    encode = xla_flops(lambda video: model.encode(video), video)
    decode = xla_flops(lambda z: model.decode(z, 11), z)
    # XLA leaves out the products with padding (6% at this size) and counts activations and norms
    assert flops.vae_encode_flops(11, 32, 48, **config) == pytest.approx(encode, rel=0.06)
    assert flops.vae_decode_flops(11, 32, 48, **config) == pytest.approx(decode, rel=0.06)


def test_t5_costs_what_xla_counts():
    model = random_model(lambda rngs: text.T5Encoder(**T5, rngs=rngs))
    counted = xla_flops(model, jnp.zeros((1, 100), int), jnp.ones((1, 100), bool))
    assert flops.t5_forward_flops(tokens=100, **T5) == pytest.approx(counted, rel=0.06)  # softmax
    # XLA counts the body of a scan once, so depth is checked by proportion
    deep = flops.t5_forward_flops(tokens=100, **T5 | {"depth": 3})
    assert deep == 3 * flops.t5_forward_flops(tokens=100, **T5)


def test_batch_of_whole_chunks_costs_in_proportion():
    one, three = (flops.vae_encode_flops(17 * n, 64, 96) for n in (1, 3))
    assert three == pytest.approx(3 * one)
    assert flops.vae_decode_flops(1, 64, 96) < flops.vae_decode_flops(4, 64, 96)


def test_defaults_are_those_of_the_models():
    assert flops.vae_encode_flops(17, 64, 64) == flops.vae_encode_flops(
        17,
        64,
        64,
        spatial={"channels": vae_spatial.CHANNELS, "layers_per_block": 2},
        temporal={"filters": 128, "num_res_blocks": 4, "channel_multipliers": (1, 2, 2, 4)},
        scaling_factor=0.5,  # costs nothing, so it is ignored
    )


def test_stdit_parts_of_the_published_model():
    # XL/2 on 51 frames of 240x426: 15 latent frames of 15 x 27 patches, 300 text tokens
    parts = flops.stdit_forward_flops(
        latent_frames=15, tokens=405, text_tokens=300, width=1152, depth=28, text_width=4096
    )
    assert parts["mlp"] == 56 * 16 * 1152**2 * 6075
    assert parts["spatial_attention"] == 28 * 4 * 1152 * 405 * 6075
    assert parts["spatial_attention"] == 27 * parts["temporal_attention"]  # 405 keys against 15
    assert parts["self_attention_linear"] == 56 * 8 * 1152**2 * 6075
    assert max(parts, key=parts.get) == "mlp"
