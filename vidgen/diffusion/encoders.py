"""The frozen models around the diffusion transformer: video VAE and text encoder, and the token
grid.

Built from `config.vae` and `config.text`; arrays come in as the tree `frozen = {"vae": ...,
"text": ...}`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.loading import buckets, resolutions, tokenizer
from vidgen.models import compat, layers, text, vae
from vidgen.training import checkpoint
from vidgen.weights import published, tree_files

_FRAMES = 20  # purpose of random numbers: which frames of a clip are encoded
_TOKEN_MULTIPLE = 8  # padded tokens of a frame: flash kernels want even lengths


def split(make_module):
    """Splits a module into its graph and an initialiser, without holding its arrays.

    Returns:
        (graph, init): `init(key)` gives the params tree, and `nnx.merge(graph, params)` the module.
    """

    def init(key):
        return nnx.to_pure_dict(nnx.state(make_module(rngs=nnx.Rngs(key))))

    return nnx.graphdef(nnx.eval_shape(lambda: make_module(rngs=nnx.Rngs(0)))), init


def compute_dtype(config) -> str:
    """Type of the computation: `config.dtype`, where "auto" is bfloat16 unless on CPU."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def vae_maker(config):
    """Returns what makes the config's VAE, given `rngs`."""
    model = config.vae.model.to_dict()
    kinds = {"dtype": compute_dtype(config), "compat": config.get("compat", "")}
    return functools.partial(vae.VideoVAE, **model, **kinds)


def vae_strides(config) -> dict[str, int]:
    """`chunk_frames`, `time_stride` and `spatial_stride` of the config's VAE."""
    module = nnx.eval_shape(lambda: vae_maker(config)(rngs=nnx.Rngs(0)))
    return {
        name: getattr(module, name) for name in ("chunk_frames", "time_stride", "spatial_stride")
    }


def bucket_table(config) -> dict[str, dict[int, tuple]]:
    """The config's buckets as the loader takes them; a config's keys are strings.

    Raises:
        ValueError: If a bucket's frames do not fit the VAE.
    """
    strides, table = vae_strides(config), {}
    for resolution, entries in config.data.buckets.to_dict().items():
        table[resolution] = {buckets.parse_num_frames(n): entry for n, entry in entries.items()}
        for num_frames in table[resolution]:
            vae.check_frames(
                num_frames,
                chunk_frames=strides["chunk_frames"],
                time_stride=strides["time_stride"],
                name=f"data.buckets.{resolution}: frames",
            )
    return table


def clip_choice(config, row: int, bucket: buckets.Bucket) -> tuple:
    """What becomes of a clip that is encoded once: the arguments of `batches.video_sample`."""
    return bucket, config.data.frame_interval, (config.seed, row, _FRAMES)


class Encoders:
    """VAE and text encoder of a config, as functions of their frozen parameters."""

    def __init__(self, config):
        self.config = config
        self.vae_graph, self._init_vae = split(vae_maker(config))
        self.patch = tuple(config.model.patch)
        self.position_size = config.flow.position_size
        self.switches = compat.switches(config.get("compat", ""))  # older runs have no such field
        self.strides = vae_strides(config)
        self.latent_channels = len(config.vae.model.shift)
        self.tokenize = tokenizer.make_tokenize(config.text.folder or None, config.text.max_tokens)
        self.budgets = self._token_budgets(config.data.buckets)

    @functools.cached_property
    def _text(self):
        """(graph, initialiser) of the text encoder; a folder's weights are read at first use."""
        settings = self.config.text
        if not settings.folder:
            return split(functools.partial(text.T5Encoder, **settings.model.to_dict()))
        source = published.open_source(published.find(settings.folder), "t5")
        graph, _ = split(functools.partial(text.T5Encoder, **source.arguments))
        return graph, lambda key: source.load(lambda path, value: jnp.asarray(value))

    def load(self):
        """Returns the frozen trees: the VAE of `config.vae.weights`, the text encoder of
        `config.text.folder`, or a random one of a fixed seed where there is no folder.

        Raises:
            ValueError: If the VAE's weights do not fit its config, or none are named.
        """
        if not self.config.vae.weights:
            raise ValueError(
                "config.vae.weights is empty: give the working folder of a trained VAE "
                "(python -m vidgen.train --config=configs/quickstart_vae.py) or "
                "a .safetensors file."
            )
        expected = jax.eval_shape(self._init_vae, jax.random.key(0))
        loaded = checkpoint.load_params(self.config.vae.weights)
        tree_files.check_tree(loaded, expected, name=str(self.config.vae.weights))
        _, init_text = self._text
        text_params = init_text(jax.random.key(self.config.text.seed))
        return jax.tree.map(jnp.asarray, {"vae": loaded, "text": text_params})

    def encode_video(self, frozen, video_BTHWC, key):
        """Mean and deviation [B, t, h, w, c] of the normalised latents of a uint8 clip."""
        model = nnx.merge(self.vae_graph, frozen["vae"])
        mean_Bthwc, logvar_Bthwc = model.encode(from_uint8(video_BTHWC), key)
        std_Bthwc = jnp.exp(0.5 * logvar_Bthwc)
        return model.normalise(mean_Bthwc), std_Bthwc / model.scale[...].reshape(1, 1, 1, 1, -1)

    def decode_video(self, frozen, latent_Bthwc, num_frames: int):
        """Clip [B, T, H, W, 3] uint8 of normalised latents."""
        model = nnx.merge(self.vae_graph, frozen["vae"])
        return to_uint8(model.decode(model.denormalise(latent_Bthwc), num_frames))

    def encode_text(self, frozen, ids_BL, mask_BL):
        """Text features [B, L, E]."""
        return nnx.merge(self._text[0], frozen["text"])(ids_BL, mask_BL)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of a clip's latent."""
        return vae.latent_shape(
            num_frames, height, width, latent_channels=self.latent_channels, **self.strides
        )

    def to_tokens(self, latent_Bthwc):
        """Patches [B, t, S, P] of latents, padded to the tokens of their resolution."""
        return layers.patchify(latent_Bthwc, self.patch, self.budget(*latent_Bthwc.shape[2:4]))

    def grid(self, clips: int, latent_height: int, latent_width: int, pixel_size: tuple[int, int]):
        """What the model is told of the patches of clips of one size.

        Returns:
            A dict: `position` [B, S, 2], `length` [B], and `real` [B, 1, S, P], which is 1 where a
            patch holds a cell of the latent and 0 in padding.
        """
        rows, columns = layers.patch_grid(latent_height, latent_width, self.patch)
        if self.switches.bfloat16_sizes:
            pixel_size = tuple(float(jnp.bfloat16(side)) for side in pixel_size)
        budget = self.budget(latent_height, latent_width)
        position_S2 = layers.patch_positions(rows, columns, pixel_size, self.position_size, budget)
        ones = np.ones((1, 1, latent_height, latent_width, self.latent_channels), np.float32)
        repeat = lambda x: jnp.repeat(jnp.asarray(x), clips, axis=0)
        return {
            "position": repeat(position_S2[None]),
            "length": jnp.full(clips, rows * columns, jnp.int32),
            "real": repeat(self.to_tokens(ones)),
        }

    def budget(self, latent_height: int, latent_width: int) -> int:
        """Tokens that a latent frame of this size is padded to."""
        rows, columns = layers.patch_grid(latent_height, latent_width, self.patch)
        return self.budgets.get((rows, columns), _round_up(rows * columns))

    def _token_budgets(self, table) -> dict[tuple[int, int], int]:
        """Padded tokens a frame for each patch grid: all aspects of a resolution share the
        largest."""
        budgets = {}
        for resolution in table:
            grids = set()
            for height, width in resolutions.sizes(resolution).values():
                _, h, w, _ = self.latent_shape(1, height, width)
                grids.add(layers.patch_grid(h, w, self.patch))
            budget = _round_up(max(rows * columns for rows, columns in grids))
            budgets |= {grid: max(budget, budgets.get(grid, 0)) for grid in grids}
        return budgets


def _round_up(tokens: int) -> int:
    return -(-tokens // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE


def from_uint8(video):
    """Pixels 0..255 as float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1


def to_uint8(video):
    """Pixels of a float video in [-1, 1], rounded to the nearest of 0..255."""
    return jnp.round(jnp.clip((video + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def check_size(height: int, width: int, stride: int):
    """Refuses a picture that the VAE would cut.

    Raises:
        ValueError: If a side is no multiple of the VAE's spatial stride; names the nearest that is.
    """
    for name, side in (("height", height), ("width", width)):
        if side % stride or side <= 0:
            near = max(stride, round(side / stride) * stride)
            raise ValueError(
                f"{name}={side} is no multiple of the VAE's stride {stride}: use {near}."
            )
