"""Data sets as tensorflow-datasets sees them: a builder, the names of shards, the metadata.

`Clips` works as any TFDS builder, `download_and_prepare` included, and `write_metadata` lets TFDS
read the folders that `builder` writes.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.shards import records

NAME, SPLIT = "clips", "train"


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self):
        """Asks nobody: TFDS would ask its own servers for facts of a data set that is ours."""


class Clips(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of one kind of records; examples come from `make_shard(0), (1), ...`."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME
    url_infos: ClassVar = {}  # nothing is downloaded; TFDS would look for checksums beside the code

    def __init__(
        self,
        kind: str,
        num_shards: int = 0,
        make_shard: Callable[[int], Iterable[dict]] | None = None,
        **kwargs,
    ):
        self.kind, self.num_shards, self.make_shard = kind, num_shards, make_shard
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"Clips with captions, kind {self.kind}.",
            features=records.features(self.kind),
            disable_shuffling=True,  # the order of the source: the loader shuffles
        )

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        number = 0
        for shard in range(self.num_shards):
            for record in self.make_shard(shard):
                yield number, record
                number += 1


def shard_name(number: int) -> str:
    """Returns the name of a shard's file; it does not change when shards are added."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}"


def write_metadata(folder: pathlib.Path, kind: str, lengths: list[int], num_bytes: int):
    """Writes dataset_info.json and features.json beside the shards.

    Args:
        folder: Of the data set.
        kind: "video" or "latent".
        lengths: Records of each shard.
        num_bytes: Of all records.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=NAME,
        split=SPLIT,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
    )
    info = Clips(kind, data_dir=folder).info
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)
