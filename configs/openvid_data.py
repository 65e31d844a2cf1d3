"""OpenVid-1M as published: clips are cut already, and its table has aesthetic and camera scores.

python -m data_pipelines.pipeline --source=openvid:DIR --out=shards --config=configs/openvid_data.py

Its own scores are asked for as `given.NAME`; what they leave out is decoded all the same, so that
the ledger says what it was. Its motion score is another measure than ours.
"""

from configs import data


def get_config():
    config = data.base()
    config.scores = ("motion", "static_share", "black_share", "letterbox", "phash")
    config.captions.strip_prefix = True
    config.captions.drop_links = True
    config.rules = (
        "given.aesthetic >= 4.5",  # what Open-Sora 1.2 asked of Panda-70M
        "2 <= seconds <= 32",
        "short_side >= 480",
        "motion >= 0.5",
        "static_share <= 0.5",
        "black_share <= 0.1",
        "letterbox <= 0.3",
    )
    config.dedup.exact = True
    config.dedup.near = 8
    return config
