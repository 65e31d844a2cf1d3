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
from vidgen.models import compat, layers, places, text, vae
from vidgen.training import checkpoint, sharding
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
    return functools.partial(vae.VideoVAE, **model, **kinds, slice_pixels=_slice_pixels(config))


def _slice_pixels(config):
    """Pixels that the VAE takes at a time; None for all. Configs of older runs lack the field."""
    return config.vae.get("slice_pixels", 0) or None


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
    def _text_source(self):
        """The published text encoder of `config.text.folder`, checked; None without a folder."""
        folder = self.config.text.folder
        return published.open_source(published.find(folder), "t5") if folder else None

    @functools.cached_property
    def _text(self):
        """(graph, initialiser) of the text encoder."""
        source = self._text_source
        arguments = source.arguments if source else self.config.text.model.to_dict()
        dtype = compute_dtype(self.config)
        return split(functools.partial(text.T5Encoder, dtype=dtype, **arguments))

    def abstract(self, mesh=None):
        """Shapes, types and places of what `load` returns, from headers and the config alone.

        What is multiplied is held in the type that computes, to which the modules would cast it at
        every call; norms and tables of positions stay float32.
        """
        dtype = jnp.dtype(compute_dtype(self.config))

        def held(path, x):
            is_cast = sharding.path_name(path).rsplit("/", 1)[-1] in ("kernel", "embed")
            return jax.ShapeDtypeStruct(x.shape, dtype if is_cast else x.dtype)

        inits = {"vae": self._init_vae, "text": self._text[1]}
        shape = lambda init: jax.eval_shape(lambda: init(jax.random.key(0)))
        trees = {name: shape(init) for name, init in inits.items()}
        trees = jax.tree.map_with_path(held, trees)
        if mesh is None:
            return trees
        rules = self.config.get("frozen_sharding", ((".*", ()),))  # older runs have no such field
        return sharding.placed(trees, sharding.by_path(trees, rules, mesh))

    def load(self, mesh=None):
        """Returns the frozen trees: the VAE of `config.vae.weights`, the text encoder of
        `config.text.folder`, or a random one of a fixed seed where there is no folder.

        Each array goes straight to where it is used: an encoder is never whole on one device that
        holds a part of it.

        Args:
            mesh: Where, by the rules of `config.frozen_sharding`; None: on the default device.

        Raises:
            ValueError: If the VAE's weights do not fit its config, or none are named.
        """
        if not self.config.vae.weights:
            raise ValueError(
                "config.vae.weights is empty: give the working folder of a trained VAE "
                "(python -m vidgen.train --config=configs/quickstart_vae.py) or "
                "a .safetensors file."
            )
        like = self.abstract(mesh)
        loaded = checkpoint.load_params(self.config.vae.weights)
        tree_files.check_tree(loaded, like["vae"], name=str(self.config.vae.weights))
        loaded_vae = jax.tree.map(tree_files.put, loaded, like["vae"])
        if self._text_source:
            by_path = tree_files.flatten(like["text"])
            put = lambda path, value: tree_files.put(value, by_path[path])
            return {"vae": loaded_vae, "text": self._text_source.load(put)}
        at = jax.tree.map(lambda x: x.sharding, like["text"])
        cast = lambda x, like: x.astype(like.dtype)
        draw = lambda key: jax.tree.map(cast, self._text[1](key), like["text"])
        random = jax.jit(draw, out_shardings=at)(jax.random.key(self.config.text.seed))
        return {"vae": loaded_vae, "text": random}

    def encode_video(self, frozen, video_BTHWC, key_B=None):
        """Mean and deviation [B, t, h, w, c] of the normalised latents of a uint8 clip.

        Args:
            frozen: The frozen trees.
            video_BTHWC: Pixels.
            key_B: A key for each clip, with which the latent between the VAE's parts is drawn; None
                takes its mean.
        """
        model = nnx.merge(self.vae_graph, frozen["vae"])

        def encode(clips):
            video_BTHWC, key_B = clips
            mean_Bthwc, logvar_Bthwc = model.encode(from_uint8(video_BTHWC), key_B)
            std_Bthwc = jnp.exp(0.5 * logvar_Bthwc)
            scale = model.scale[...].reshape(1, 1, 1, 1, -1)
            return model.normalise(mean_Bthwc), std_Bthwc / scale

        return places.in_slices(encode, (video_BTHWC, key_B), self._clips(*video_BTHWC.shape[1:4]))

    def decode_video(self, frozen, latent_Bthwc, num_frames: int):
        """Clip [B, T, H, W, 3] uint8 of normalised latents."""
        model = nnx.merge(self.vae_graph, frozen["vae"])
        decode = lambda z: to_uint8(model.decode(model.denormalise(z), num_frames))
        sides = (side * self.strides["spatial_stride"] for side in latent_Bthwc.shape[2:4])
        return places.in_slices(decode, latent_Bthwc, self._clips(num_frames, *sides))

    def _clips(self, num_frames: int, height: int, width: int) -> int | None:
        """Clips of this size that the VAE takes at a time; a large clip it cuts itself."""
        pixels = _slice_pixels(self.config)
        return pixels and max(1, pixels // (num_frames * height * width))

    def encode_text(self, frozen, ids_BL, mask_BL):
        """Text features [B, L, E], float32."""
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
            A dict of NumPy arrays: `position` [B, S, 2], `length` [B], and `real` [B, 1, S, P],
            which is 1 where a patch holds a cell of the latent and 0 in padding.
        """
        rows, columns = layers.patch_grid(latent_height, latent_width, self.patch)
        if self.switches.bfloat16_sizes:
            pixel_size = tuple(float(jnp.bfloat16(side)) for side in pixel_size)
        budget = self.budget(latent_height, latent_width)
        position_S2 = layers.patch_positions(rows, columns, pixel_size, self.position_size, budget)
        ones = np.ones((1, 1, latent_height, latent_width, self.latent_channels), np.float32)
        repeat = lambda x: np.repeat(x, clips, axis=0)
        return {
            "position": repeat(position_S2[None]),
            "length": np.full(clips, rows * columns, np.int32),
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
