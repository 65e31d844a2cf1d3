"""MiraData v1: times in long videos, which become files of their own here, at 720 pixels at most.

python -m data_pipelines.pipeline --source=miradata:DIR --out=OUT --config=configs/miradata_data.py

The published clips are cut at their scenes already, and are long: the rest of one over 16 seconds
becomes further clips, with the caption of the whole.
"""

from configs import data


def get_config():
    config = data.base()
    config.limits.max_frames = 250_000  # whole videos of an hour or two
    config.limits.max_video_pixels = 1 << 40
    config.limits.max_bytes = 8 << 30
    config.limits.deadline_seconds = 3600.0
    config.cuts.enabled = True
    config.cuts.min_seconds = 2.0
    config.cuts.max_seconds = 16.0
    config.cuts.split_long = True
    config.scores = ("motion", "static_share", "black_share", "letterbox", "phash")
    config.captions.strip_prefix = True
    config.captions.drop_links = True
    config.rules = (
        "short_side >= 480",
        "motion >= 0.5",
        "static_share <= 0.5",
        "black_share <= 0.1",
        "letterbox <= 0.3",
    )
    config.dedup.exact = True
    config.dedup.near = 8
    config.shards.short_side = 720
    return config
