"""What a training step means: between models, which are modules, and the loop, which knows trees.

A task offers
    kinds: the kinds of data sets that it can learn from;
    loader_settings: arguments of the loader that follow from the models;
    init(key) -> params, the tree that is trained;
    load_frozen(mesh, kind) -> frozen, the trees that are only used (VAE, text encoder), where they
    are used; what data of this kind have in them already is left out;
    frozen_shapes(mesh, kind) -> the same as shapes and places;
    collate(batch, bucket) -> a batch of the loader as `prepare` takes it, still NumPy;
    prepare(frozen, batch, bucket, key) -> the batch as the loss takes it, cut along its clips, by a
    small program: one a (resolution, frames) for latents, one a size for videos;
    loss(params, frozen, batch, key) -> (scalar, metrics), means over clips whose random numbers are
    their own: functions of (key, `batch["slot"]`);
    tokens(bucket) -> how many tokens (text-to-video) or pixels (VAE) a clip has, without padding;
    forward_flops(bucket, padded=False) -> floating-point operations of the loss for one clip;
    example_batch(bucket, rng) -> a random batch as the loader gives it;
    preview(params, frozen, batch) -> {name: uint8 videos BTHWC}.
The loop knows no other word about models.
"""

import vidgen.tasks.autoencoder as autoencoder
import vidgen.tasks.text_to_video as text_to_video


def make_task(config):
    """Returns the task that `config.task` names.

    Raises:
        ValueError: If there is no such task.
    """
    tasks = {"text_to_video": text_to_video.TextToVideo, "autoencoder": autoencoder.Autoencoder}
    if config.task not in tasks:
        raise ValueError(f"task={config.task!r} is unknown: use one of {', '.join(tasks)}.")
    return tasks[config.task](config)
