"""Floating-point operations of a forward pass, from the numbers of a configuration.

A multiply and its add count as two. Only matrix products and convolutions count, padding included:
norms, activations and softmax are below a few percent of them. Training costs three times the
forward pass of what learns, and more where blocks are recomputed.

Each function takes the arguments of the model it prices, so `stdit_forward_flops(**config.model,
...)` works; arguments that cost nothing are ignored.
"""

import math

from vidgen.models import vae_spatial


def stdit_forward_flops(
    *,
    latent_frames: int,
    tokens: int,
    text_tokens: int,
    width: int,
    depth: int,
    text_width: int,
    in_channels: int = 4,
    patch: tuple[int, int] = (2, 2),
    mlp_ratio: float = 4.0,
    predict_sigma: bool = True,
    frame_mask: bool = True,
    **_,
) -> dict[str, float]:
    """FLOPs by part for one clip through `models.stdit.STDiT`.

    Args:
        latent_frames: t.
        tokens: S, tokens of a latent frame with padding.
        text_tokens: L with padding.
        width: D.
        depth: Pairs of blocks.
        text_width: E.
        in_channels: Channels of a latent.
        patch: Height and width of a patch.
        mlp_ratio: Width of the MLP by D.
        predict_sigma: Whether the output has twice the channels.
        frame_mask: Whether the time embedding is computed for given frames too.
    """
    all_tokens, blocks = latent_frames * tokens, 2 * depth
    patch_values = in_channels * patch[0] * patch[1]
    dense = lambda rows, inputs, outputs: 2.0 * rows * inputs * outputs
    attend = lambda queries, keys: 4.0 * queries * keys * width  # logits and weighted values
    embeddings = 3 if frame_mask else 2  # time, frame rate, time zero
    return {
        "self_attention_linear": blocks * dense(all_tokens, width, 4 * width),
        "spatial_attention": depth * attend(all_tokens, tokens),
        "temporal_attention": depth * attend(all_tokens, latent_frames),
        "cross_attention_linear": blocks
        * (dense(all_tokens, width, 2 * width) + dense(text_tokens, width, 2 * width)),
        "cross_attention": blocks * attend(all_tokens, text_tokens),
        "mlp": blocks * 2 * dense(all_tokens, width, int(width * mlp_ratio)),
        "text": dense(text_tokens, text_width, width) + dense(text_tokens, width, width),
        "condition": embeddings * (dense(1, 256, width) + dense(1, width, width))
        + (embeddings - 1) * dense(1, width, 6 * width),
        "patches": dense(all_tokens, patch_values, width)
        + (2 if predict_sigma else 1) * dense(all_tokens, width, patch_values),
    }


def t5_forward_flops(
    *, tokens: int, width: int, head_width: int, heads: int, mlp_width: int, depth: int, **_
) -> float:
    """FLOPs of one text of `tokens` tokens, padding included, through `models.text.T5Encoder`."""
    inner = heads * head_width
    linear = 2.0 * tokens * width * (4 * inner + 3 * mlp_width)
    return depth * (linear + 4.0 * tokens**2 * inner)


def vae_encode_flops(
    num_frames: int,
    height: int,
    width: int,
    *,
    spatial: dict | None = None,
    temporal: dict | None = None,
    chunk_frames: int | None = 17,
    **_,
) -> float:
    """FLOPs to encode one clip with `models.vae.VideoVAE`."""
    return _vae_flops(num_frames, height, width, spatial, temporal, chunk_frames, decode=False)


def vae_decode_flops(
    num_frames: int,
    height: int,
    width: int,
    *,
    spatial: dict | None = None,
    temporal: dict | None = None,
    chunk_frames: int | None = 17,
    **_,
) -> float:
    """FLOPs to decode one clip of `num_frames` frames with `models.vae.VideoVAE`."""
    return _vae_flops(num_frames, height, width, spatial, temporal, chunk_frames, decode=True)


def _vae_flops(num_frames, height, width, spatial, temporal, chunk_frames, *, decode):
    spatial, temporal = dict(spatial or {}), dict(temporal or {})
    stride = 2 ** (len(spatial.get("channels", vae_spatial.CHANNELS)) - 1)
    latent_channels = spatial.get("latent_channels", 4)
    temporal = {"channels": latent_channels, "latent_channels": latent_channels} | temporal
    area = (height // stride) * (width // stride)
    chunk_frames = min(chunk_frames or num_frames, num_frames)
    chunks, rest = divmod(num_frames, chunk_frames)
    per_chunk = _temporal_flops(chunk_frames, area, decode=decode, **temporal)
    last = _temporal_flops(rest, area, decode=decode, **temporal) if rest else 0.0
    image = image_flops(height, width, decode=decode, **spatial)
    return num_frames * image + chunks * per_chunk + last


def _conv(inputs, outputs, kernel_size, positions):
    return 2.0 * inputs * outputs * kernel_size * positions


def _res_blocks(inputs, outputs, count, kernel_size, positions):
    first = _conv(inputs, outputs, 1, positions) if inputs != outputs else 0.0
    first += _conv(inputs, outputs, kernel_size, positions)
    rest = (2 * count - 1) * _conv(outputs, outputs, kernel_size, positions)
    return first + rest


def image_flops(
    height,
    width,
    *,
    decode,
    channels=vae_spatial.CHANNELS,
    layers_per_block=2,
    latent_channels=4,
    image_channels=3,
    **_,
):
    """FLOPs of one image through the image autoencoder's encoder, or its decoder."""
    positions = [(height >> level) * (width >> level) for level in range(len(channels))]
    low, wide = positions[-1], channels[-1]
    middle = _res_blocks(wide, wide, 2, 9, low) + _conv(wide, 4 * wide, 1, low)
    total = middle + 4.0 * low**2 * wide
    levels = list(enumerate(channels))
    if decode:
        total += _conv(latent_channels, latent_channels, 1, low) + _conv(
            latent_channels, wide, 9, low
        )
        levels.reverse()
    else:
        total += _conv(wide, 2 * latent_channels, 9, low) + _conv(
            2 * latent_channels, 2 * latent_channels, 1, low
        )
    total += _conv(image_channels, channels[0], 9, positions[0])
    previous = levels[0][1]
    for level, current in levels:
        blocks = layers_per_block + 1 if decode else layers_per_block
        total += _res_blocks(previous, current, blocks, 9, positions[level])
        resized = level - 1 if decode else level + 1
        if 0 <= resized < len(channels):
            total += _conv(current, current, 9, positions[resized])
        previous = current
    return total


def _temporal_flops(
    frames,
    area,
    *,
    decode,
    filters=128,
    channel_multipliers=(1, 2, 2, 4),
    temporal_downsample=(False, True, True),
    num_res_blocks=4,
    latent_channels=4,
    channels=4,
    **_,
):
    widths = [filters * multiplier for multiplier in channel_multipliers]
    latent_frames = math.ceil(frames / 2 ** sum(temporal_downsample))
    # frames at each level; level i + 1 has half of level i where temporal_downsample[i]
    rates = [2 ** sum(temporal_downsample[level:]) for level in range(len(widths))]
    positions = [latent_frames * rate * area for rate in rates]
    low, wide = positions[-1], widths[-1]
    total = _res_blocks(wide, wide, num_res_blocks, 27, low)
    moments = 2 * latent_channels
    if decode:
        total += _conv(latent_channels, latent_channels, 1, low) + _conv(
            latent_channels, wide, 27, low
        )
        total += _conv(widths[0], channels, 27, positions[0])
        above = [*widths[1:], wide]
    else:
        total += _conv(channels, widths[0], 27, positions[0])
        total += _conv(wide, moments, 1, low) + _conv(moments, moments, 1, low)
        above = [widths[0], *widths]
    for level, current in enumerate(widths):
        total += _res_blocks(above[level], current, num_res_blocks, 27, positions[level])
    for level, halve in enumerate(temporal_downsample):
        if halve and decode:
            total += _conv(widths[level + 1], 2 * widths[level + 1], 27, positions[level + 1])
        elif halve:
            total += _conv(widths[level], widths[level], 27, positions[level + 1])
    return total
