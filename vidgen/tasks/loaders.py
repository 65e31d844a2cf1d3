"""The loader of a run: what its data, buckets and task ask for."""

import os
import pathlib

import jax

from data_pipelines.loading import loader as loader_lib
from data_pipelines.loading import mixture
from vidgen.diffusion import encoders


def make_loader(config, task, folder: str | os.PathLike) -> loader_lib.Loader:
    """The loader of a config, for this process's part of every batch.

    Clips that cannot be read are listed in `folder`/bad_clips-PROCESS.jsonl.

    Raises:
        ValueError: If the data are not there, or do not fit the config.
    """
    table = encoders.bucket_table(config)
    kind = mixture.read(config.data.path).kind
    if kind not in task.kinds:
        raise ValueError(
            f"data.path={config.data.path} holds {kind} shards, and task={config.task!r} learns "
            f"from {' or '.join(task.kinds)} shards: give the --out folder of "
            "data_pipelines.pipeline."
        )
    return loader_lib.Loader(
        config.data.path,
        buckets=table,
        seed=config.seed,
        frame_interval=config.data.frame_interval,
        mask_ratios=config.data.mask_ratios.to_dict(),
        text_dropout=config.data.text_dropout,
        num_workers=config.data.workers,
        **{name: config.data[name] for name in ("deadline_seconds", "bad_limit")},
        bad_list=pathlib.Path(folder) / f"bad_clips-{jax.process_index()}.jsonl",
        counts_file=pathlib.Path(folder) / "epoch_counts.txt",
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **task.loader_settings,
    )
