"""Every feature at toy size: what the tests of the commands run, in seconds on a CPU.

python -m vidgen.train --config=configs/tiny.py --workdir=outputs/tiny
"""

from configs import common


def get_config():
    config = common.base()
    config.num_steps = 6
    config.data.path = "outputs/tiny_shards"
    config.data.buckets = {"32": {"17": (1.0, 2), "1": (1.0, 4)}}
    config.data.workers = 0  # children take a second to start
    config.data.mask_ratios = {"image_head": 0.2, "random": 0.1}
    config.flow.base_size = 32
    config.flow.position_size = 32
    config.model.width = 16
    config.model.heads = 2
    config.model.depth = 1
    config.model.remat = True
    config.microbatches = 2
    config.schedule.warmup_steps = 2
    config.schedule.decay = "cosine"
    config.checkpoint_every = 2
    config.checkpoint.keep = 2
    return config
