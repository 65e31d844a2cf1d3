"""The programs that the commands run, as functions of their shapes: what `compile_h100` compiles.

Each function takes (models, mesh, bucket) and returns the `Program`s of one command. Nothing is
computed, and no weights are read: arguments are shapes with their places.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import opensora
from data_pipelines.loading import buckets, resolutions
from vidgen import encode, tasks
from vidgen.diffusion import encoders
from vidgen.models import flops
from vidgen.training import data, micro_steps, sharding, train_state

STAGES = (1, 2, 3)
# google/t5-v1_1-xxl, whose numbers otherwise come from the config.json beside the weights
_T5_XXL = {"vocab_size": 32128, "width": 4096, "head_width": 64, "heads": 64, "mlp_width": 10240}
_T5_XXL |= {"depth": 24, "neighbours": None}


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a command.

    Args:
        command: Who runs it.
        name: Of the program.
        bucket: Whose shape it has.
        run: The jitted function.
        arguments: Its arguments, shapes for arrays.
        flops: Of all devices, by `vidgen.models.flops`; without what remat computes again.
        sent: Bytes that a device is expected to gather or reduce, by the kind of collective.
    """

    command: str
    name: str
    bucket: buckets.Bucket
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: float
    sent: dict[str, int] = dataclasses.field(default_factory=dict)


class Models:
    """Task, optimizer and encoders of one published stage, for a number of GPUs."""

    def __init__(self, stage: int, gpus: int):
        self.config = config = opensora.get_config(f"stage={stage},gpus={gpus}")
        config.text.folder = ""  # shapes are enough
        config.text.model = _T5_XXL
        self.gpus = gpus
        self.task, self.tx = tasks.make_task(config), train_state.make_optimizer(config)
        self.encoders = self.task.encoders
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        self.table = encoders.bucket_table(config)

    def mesh_shape(self, command: str) -> dict[str, int]:
        """The mesh of a command: the config's for training; else each device has whole models."""
        fsdp = min(self.config.mesh.fsdp, self.gpus) if command == "train" else 1
        return {"data": self.gpus // fsdp, "fsdp": fsdp}

    @functools.cached_property
    def state(self) -> train_state.TrainState:
        """Shapes of the train state."""
        init = functools.partial(train_state.init_state, task=self.task, tx=self.tx)
        return jax.eval_shape(init, self.key)

    def shapes(self) -> Iterator[buckets.Bucket]:
        """One bucket of each (resolution, frames) that takes clips: of the aspect nearest to 1."""
        for resolution, lengths in self.table.items():
            sizes = resolutions.sizes(resolution)
            aspect = min(sizes, key=lambda name: abs(float(name) - 1))
            for num_frames, (_, clips) in lengths.items():
                if clips:
                    shape = aspect, *sizes[aspect]
                    yield buckets.Bucket(resolution, num_frames, *shape, clips)

    def bucket(self, resolution: str, num_frames: int) -> buckets.Bucket:
        """One of `shapes`."""
        wanted = resolution, num_frames
        return next(b for b in self.shapes() if (b.resolution, b.num_frames) == wanted)


def train(models: Models, mesh, bucket) -> list[Program]:
    """What an update is made of, and what comes before it where shards hold videos or latents."""
    task, config = models.task, models.config
    parts = micro_steps.slices(bucket.batch_size, sharding.batch_devices(mesh), config.microbatches)
    part = dataclasses.replace(bucket, batch_size=bucket.batch_size // parts)
    places = sharding.by_path(models.state, config.sharding, mesh)
    state = sharding.placed(models.state, places)
    update = train_state.Update(task, models.tx, config, places)
    key, found = replicated(models.key, mesh), []
    prepare = type(task)._prepare
    encoding = part.batch_size * _encode_flops(models, bucket)
    for kind, cost in (("video", encoding), ("latent", 0)):
        given = split_batch(task.collate(loader_batch(models, part, kind), part), mesh)
        size = (bucket.num_frames, bucket.height, bucket.width) if kind == "video" else None
        frozen = models.encoders.abstract(mesh) if kind == "video" else {}
        arguments = (task, frozen, given, key, size)
        sent = {"all-gather": _cut_bytes(frozen)}
        found.append(Program("train", f"prepare {kind}", part, prepare, arguments, cost, sent))
        batch = jax.eval_shape(functools.partial(prepare, task, size=size), frozen, given, key)
    batch = split_batch(batch, mesh)
    sums = jax.eval_shape(update.zeros, state.params, {}, batch)
    sums = sharding.placed(sums[0], places.params), replicated(sums[1], mesh)
    scalars = jax.ShapeDtypeStruct((), np.uint32), jax.ShapeDtypeStruct((), np.float32)
    cost = 3 * part.batch_size * task.forward_flops(bucket)
    gradient = (state.params, sums, {}, batch, *scalars)
    cut = _cut_bytes(state.params) // 2  # held in float32, sent in bfloat16
    passes = 2 if config.model.remat else 1  # forward, and again in the backward pass
    sent = {"all-gather": passes * cut, "reduce-scatter": cut}
    return [
        Program("train", "gradient", part, update.gradient, gradient, cost, sent),
        Program("train", "apply", part, update.apply, (state, sums), 0),
        *found,
    ]


def encode_clips(models: Models, mesh, bucket) -> list[Program]:
    """`vidgen.encode`: VAE and text encoder."""
    clips = encode.batch_clips(bucket, sharding.batch_devices(mesh))
    shapes = loader_batch(models, dataclasses.replace(bucket, batch_size=clips), "video")
    arrays = [shapes[name] for name in ("video", "text_ids", "text_mask")]

    @jax.jit
    def run(frozen, video_BTHWC, ids_BL, mask_BL):
        mean_Bthwc, std_Bthwc = models.encoders.encode_video(frozen, video_BTHWC)
        return mean_Bthwc, std_Bthwc, models.encoders.encode_text(frozen, ids_BL, mask_BL)

    arguments = (models.encoders.abstract(mesh), *split_batch(arrays, mesh))
    cost = clips * _encode_flops(models, bucket)
    bucket = dataclasses.replace(bucket, batch_size=clips)
    return [Program("encode", "encode", bucket, run, arguments, cost)]


def sample(models: Models, mesh, bucket, clips: int = 1) -> list[Program]:
    """The three programs of a `generate.Sampler`, for `clips` videos at once."""
    sampler, config = models.task.sampler, models.config
    shape_thwc = models.encoders.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    size, cls = (bucket.height, bucket.width), type(sampler)
    length = config.text.max_tokens
    whole = lambda tree: replicated(tree, mesh)
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    text = whole((of(jnp.int32, clips, length), of(jnp.bool_, clips, length)))
    frozen, params = models.encoders.abstract(mesh), whole(models.state.params)
    begin = (frozen, text, whole(of(jnp.uint32, clips, 2)), whole(models.key))
    start = functools.partial(cls._start, sampler, shape_thwc=shape_thwc, pixel_size=size)
    latent, real, context = whole(jax.eval_shape(start, *begin))
    context |= {"fps_B": whole(of(jnp.float32, clips))}
    t = whole(of(jnp.float32, clips))
    step = (sampler, params, latent, real, t, t, context, 7.0)
    text_cost = clips * _text_flops(models)
    decode_cost = clips * flops.vae_decode_flops(
        bucket.num_frames, *size, **config.vae.model.to_dict()
    )
    bucket = dataclasses.replace(bucket, batch_size=clips)
    step_cost = 2 * clips * models.task.forward_flops(bucket)
    finish = (sampler, frozen, latent, shape_thwc, bucket.num_frames)
    begin = (sampler, *begin, shape_thwc, size)
    return [
        Program("sample", "start", bucket, cls._start, begin, text_cost),
        Program("sample", "step", bucket, cls._step, step, step_cost),
        Program("sample", "finish", bucket, cls._finish, finish, decode_cost),
    ]


COMMANDS = {"train": train, "encode": encode_clips, "sample": sample}


def loader_batch(models: Models, bucket, kind: str) -> dict[str, np.ndarray]:
    """A batch of zeros as the loader gives it, of videos or of latents; nobody reads the pixels."""
    clips, length = bucket.batch_size, models.config.text.max_tokens
    shape_thwc = models.encoders.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    of = lambda dtype, *shape: np.zeros((clips, *shape), dtype)
    batch = {"drop_text": of(bool), "fps": of(np.float32), "text_mask": of(bool, length)}
    batch |= {"mask": of(bool, shape_thwc[0]), "slot": of(np.int32)}
    if kind == "video":
        video = of(np.uint8, bucket.num_frames, bucket.height, bucket.width, 3)
        return batch | {"video": video, "text_ids": of(np.int32, length)}
    latents = {name: of(np.float16, *shape_thwc) for name in ("latent", "latent_std")}
    width = models.config.text.model.width
    return batch | latents | {"text_emb": of(np.float16, length, width)}


def replicated(tree, mesh):
    """Shapes, whole on each device."""
    place = sharding.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def split_batch(tree, mesh):
    """Shapes, cut along their first axis as `data.to_global` cuts a batch."""
    place = lambda x: data._placement(x.shape[0], mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


def _cut_bytes(tree) -> int:
    """Bytes of the arrays that are cut among devices."""
    leaves = [x for x in jax.tree.leaves(tree) if not x.sharding.is_fully_replicated]
    return sum(x.size * x.dtype.itemsize for x in leaves)


def _text_flops(models):
    settings = models.config.text.model.to_dict()
    return flops.t5_forward_flops(tokens=models.config.text.max_tokens, **settings)


def _encode_flops(models, bucket):
    vae = models.config.vae.model.to_dict()
    size = (bucket.num_frames, bucket.height, bucket.width)
    return flops.vae_encode_flops(*size, **vae) + _text_flops(models)
