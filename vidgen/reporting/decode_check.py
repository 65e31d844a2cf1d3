"""Shows that shards of latents are sound: samples decoded to pixels, beside their originals."""

import os
import pathlib

import jax
import numpy as np

from data_pipelines.loading import batches, buckets
from data_pipelines.media import encoding
from data_pipelines.shards import records
from vidgen.diffusion import encoders
from vidgen.weights import digests


def check(config, source: str, out: str, count: int) -> list[tuple[str, str, float]]:
    """Decodes samples of a data set, and writes each beside its original to OUT.check/NUMBER.mp4.

    Args:
        config: The experiment that the latents were made with.
        source: The video shards that they were made of.
        out: The latent shards.
        count: Samples, evenly spaced.

    Returns:
        (id, bucket, PSNR in dB) of each.
    """
    models = encoders.Encoders(config)
    frozen = models.load()
    decode = jax.jit(models.decode_video, static_argnums=2)
    videos, latents = records.Reader(source), records.Reader(out)
    rows = {name: row for row, name in enumerate(videos.index["id"].tolist())}
    folder = pathlib.Path(os.path.abspath(out) + ".check")
    folder.mkdir(exist_ok=True)
    found = []
    for number, place in enumerate(np.linspace(0, len(latents) - 1, count).round().astype(int)):
        record = latents[int(place)]
        row, sizes = rows[record["id"]], (int(record[k]) for k in ("height", "width"))
        num_frames = int(record["num_frames"])
        bucket = buckets.Bucket(record["resolution"], num_frames, record["aspect"], *sizes, None)
        choice = encoders.clip_choice(config, row, bucket)
        video_THWC = batches.video_sample(videos.content(row), *choice)["video"]
        latent_1thwc = record["latent"][None].astype(np.float32)
        decoded_THWC = np.asarray(decode(frozen, latent_1thwc, num_frames))[0]
        error = np.square(video_THWC.astype(np.float64) - decoded_THWC).mean()
        psnr = float(10 * np.log10(255**2 / max(error, 1e-10)))
        beside_THWC = np.concatenate([video_THWC, decoded_THWC], axis=2)
        fps = 1 if num_frames == 1 else max(1.0, float(record["fps"]))
        content = encoding.encode_mp4(beside_THWC, fps)
        digests.write_atomically(folder / f"{number:03d}.mp4", content)
        found.append((record["id"], bucket.name, psnr))
    return found
