"""What the experiments share: defaults of every field, model sizes, and small helpers."""

from types import SimpleNamespace

from ml_collections import ConfigDict


def parse_arg(arg: str, *, stages: int, gpus: int) -> SimpleNamespace:
    """Reads what stands after the colon of `--config=FILE.py:stage=2,gpus=8`; by default stage 1.

    Raises:
        ValueError: If it is something else, or there is no such stage.
    """
    values = {"stage": 1, "gpus": gpus}
    for pair in filter(None, arg.split(",")):
        name, _, value = pair.partition("=")
        if name not in values or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{pair!r} after the config's colon: write it as stage=1,gpus={gpus}.")
        values[name] = int(value)
    if values["stage"] > stages:
        raise ValueError(f"stage={values['stage']}: the recipe has stages 1 to {stages}.")
    return SimpleNamespace(**values)


def base() -> ConfigDict:
    """Every field of a run with its default; an experiment sets what it changes.

    Fields under `may_change` of `vidgen.train` (num_steps, cadences) may differ when a run goes on.
    """
    config = ConfigDict()
    config.task = "text_to_video"  # or "autoencoder"
    config.seed = 0  # of parameters, order of the data, noise
    config.num_steps = 1000
    config.dtype = "auto"  # of the computation: bfloat16 on GPUs, float32 on CPU
    config.compat = ""  # "open-sora-1.2" rounds where the original does: docs/weights.md
    config.start_from = ""  # weights to start with: the --out of vidgen.convert --to=vidgen

    config.data = ConfigDict()
    config.data.path = ""  # a folder of shards, or several: "a=0.7,b=0.3"
    # resolution.frames: (share of clips that stay here, clips a batch over all processes)
    config.data.buckets = ConfigDict()
    config.data.mask_ratios = ConfigDict()  # how often which frames are given: spec section 5
    config.data.text_dropout = 0.1
    config.data.frame_interval = 1
    config.data.workers = 4  # processes that decode videos; 0: threads of the main one
    config.data.deadline_seconds = 60.0  # for one clip to be read
    config.data.bad_limit = 0.01  # share of clips that may be damaged, and others take their places
    config.data.skip_batches = ()  # ((first, end), ...): numbers of batches that are passed over

    config.vae = ConfigDict({"model": vae_tiny(), "loss": vae_loss()})
    config.vae.weights = ""  # for text-to-video: a VAE's working folder or .safetensors file
    config.vae.slice_pixels = 0  # that the VAE takes at a time on each device; 0: all at once
    config.vae.image_frames = 4  # of each clip, for the image autoencoder's own loss
    config.text = text_tiny()
    config.model = stdit(config.text)
    config.flow = ConfigDict()
    config.flow.sample_method = "logit-normal"
    config.flow.base_size = 512  # pixels a side at which a single frame's times are not shifted
    config.flow.position_size = 512  # pixels a side at which positions count whole patches
    config.flow.shift = 1.0

    config.schedule = ConfigDict()
    config.schedule.lr = 1e-4
    config.schedule.warmup_steps = 0
    config.schedule.decay = "constant"
    config.schedule.end = 0.0  # share of lr that a decay ends at

    config.optim = ConfigDict()
    config.optim.clip = 1.0
    config.optim.clip_recent = 0.0  # and so many deviations above the recent norm (ZClip); 0: off
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-15
    config.optim.weight_decay = 0.0
    config.optim.freeze = ("y_embedder/y_embedding", "rope_freqs")
    # batches of the loader, each of a bucket of its own, whose gradients make an update, and what
    # each counts: as much as any other ("batch"), or by its clips ("clip") or tokens ("token")
    config.accumulate = ConfigDict({"batches": 1, "weighting": "batch"})
    config.microbatches = 1  # slices of a batch, at least, taken one after the other
    config.max_refused = 5  # updates in a row that may come out not finite, and are left out
    # a loss that is `z` deviations above those of its bucket of late, so often in a row: the run
    # goes back to before, and passes over the batches of `skip` updates, `limit` times; z=0: never
    config.spike = ConfigDict({"z": 0.0, "in_a_row": 3, "skip": 200, "limit": 3})
    config.replay_every = 0  # updates; a gradient is computed twice and compared; 0: never
    config.ema_decay = 0.99

    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ((".*kernel", (None, "fsdp")), (".*", ()))  # first match wins
    config.frozen_sharding = ((".*", ()),)  # of the VAE and the text encoder

    config.checkpoint_every = 200  # steps
    config.checkpoint = ConfigDict({"keep": 3, "keep_every": 0})
    # copies on each machine, as often as they take this share of the time; no folder: none
    config.snapshot = ConfigDict({"folder": "", "share": 0.005})
    config.log = ConfigDict({"tensorboard": True, "wandb": ""})
    config.preview = ConfigDict({"every": 0, "settings": {}})  # settings of generate.Sampler
    # Seconds that a process may be in a phase; a step that took them is a hang. Once the run has
    # shown how long its steps take, less is allowed: five times that, but no less than `floor`.
    config.limits = ConfigDict({"start": 3600.0, "restore": 3600.0, "compile": 3600.0})
    config.limits.update({"data": 1800.0, "step": 1800.0, "save": 3600.0, "preview": 3600.0})
    config.limits.update({"close": 3600.0, "floor": 60.0})
    config.stop_after_seconds = 0.0  # saves and ends with 75, before a scheduler's own limit; 0: no
    return config


def full() -> ConfigDict:
    """The published models: STDiT3-XL/2, the VAE v1.2 and T5 v1.1 XXL (spec sections 1 to 3)."""
    config = base()
    config.seed = 42
    config.vae.model = vae_full()
    config.vae.weights = "weights/vae"  # vidgen.convert --layout=vae
    config.vae.slice_pixels = 4 << 20
    config.text.folder = "weights/t5-v1_1-xxl"  # of the hub's DeepFloyd/t5-v1_1-xxl
    config.text.max_tokens = 300
    config.text.model.width = 4096  # the other sizes stand in the folder
    config.model = stdit(config.text, width=1152, depth=28, heads=16)
    config.model.remat = True
    config.data.workers = 8
    config.optim.freeze = ("y_embedder/.*", "rope_freqs")
    config.mesh.fsdp = 8
    config.replay_every = 1000
    config.snapshot.folder = "/dev/shm/vidgen"
    config.frozen_sharding = (("text/.*kernel", (None, "fsdp")), (".*", ()))
    return config


def vae_full() -> ConfigDict:
    """The published video VAE: stride 8 in space and 4 in time; 393 million parameters."""
    return ConfigDict(
        {
            "spatial": {"channels": (128, 256, 512, 512), "layers_per_block": 2, "groups": 32},
            "temporal": {
                "filters": 128,
                "channel_multipliers": (1, 2, 2, 4),
                "temporal_downsample": (False, True, True),
                "num_res_blocks": 4,
                "groups": 32,
            },
            "chunk_frames": 17,
            "scaling_factor": 0.18215,
            "shift": (-0.10, 0.34, 0.27, 0.98),
            "scale": (3.85, 2.32, 2.33, 3.06),
        }
    )


def vae_tiny(channels=(8, 16, 32), filters=16) -> ConfigDict:
    """The video VAE with small numbers: stride 4 in space and time, four latent channels."""
    return ConfigDict(
        {
            "spatial": {"channels": channels, "layers_per_block": 1, "groups": 4},
            "temporal": {
                "filters": filters,
                "channel_multipliers": (1, 1, 2),
                "temporal_downsample": (True, True),
                "num_res_blocks": 1,
                "groups": 4,
            },
            "chunk_frames": 17,
            "scaling_factor": 1.0,
            "init_gain": 6**0.5,
            "shift": (0.0,) * 4,
            "scale": (1.0,) * 4,
        }
    )


def vae_loss() -> ConfigDict:
    """Weights of the terms of the VAE's objective, see `vidgen.tasks.Autoencoder.loss`."""
    weights = {"image": 4.0, "latent": 1.0, "pixel": 0.0}
    return ConfigDict(weights | {"image_kl": 1e-5, "kl": 1e-5, "statistics": 0.1})


def text_tiny() -> ConfigDict:
    """A small frozen T5 encoder of a fixed seed, on bytes."""
    return ConfigDict(
        {
            "folder": "",  # of a T5 encoder and its tokenizer; empty: bytes and random weights
            "max_tokens": 72,
            "seed": 0,
            "model": {
                "vocab_size": 384,
                "width": 64,
                "head_width": 16,
                "heads": 8,
                "mlp_width": 128,
                "depth": 1,
                "neighbours": tuple(range(0, -8, -1)),  # heads see the letters before their own
            },
        }
    )


def stdit(text: ConfigDict, width=96, depth=3, heads=3) -> ConfigDict:
    """STDiT3, by default with small numbers."""
    return ConfigDict(
        {
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": 4.0,
            "patch": (2, 2),
            "in_channels": 4,
            "predict_sigma": True,
            "text_width": text.model.get_ref("width"),
            "text_tokens": text.get_ref("max_tokens"),
            "remat": False,
            "unroll": 1,
        }
    )
