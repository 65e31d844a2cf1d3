"""What a training step means: between models, which are modules, and the loop, which knows trees.

A task offers
    kinds: the kinds of data sets that it can learn from;
    loader_settings: arguments of the loader that follow from the models;
    init(key) -> params, the tree that is trained;
    load_frozen() -> frozen, the trees that are only used (VAE, text encoder);
    prepare(frozen, batch, bucket, key) -> the batch as the loss takes it, by a small program a
    shape;
    loss(params, frozen, batch, key) -> (scalar, metrics);
    tokens(batch) -> how many tokens (text-to-video) or pixels (VAE) a prepared batch holds;
    forward_flops(bucket) -> floating-point operations of the loss for one clip;
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
