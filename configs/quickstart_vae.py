"""The small video VAE of the quickstart, trained on the embedded data set.

python -m data_pipelines.shapes --out=outputs/shapes --clips=4000 --images=400
python -m data_pipelines.pipeline --source=outputs/shapes/clips.csv --out=outputs/shards
python -m vidgen.train --config=configs/quickstart_vae.py --workdir=outputs/vae
"""

from configs import common


def get_config():
    config = common.base()
    config.task = "autoencoder"
    config.num_steps = 5000
    config.data.path = "outputs/shards"
    config.data.buckets = {"32": {"17": (1.0, 4), "1": (1.0, 16)}}
    config.schedule.lr = 4e-3
    config.schedule.warmup_steps = 50
    config.schedule.decay = "cosine"
    config.schedule.end = 0.02
    config.optim.b2 = 0.99
    config.optim.freeze = ()
    config.ema_decay = 0.995
    config.checkpoint_every = 500
    return config
