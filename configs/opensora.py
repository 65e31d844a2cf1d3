"""STDiT3-XL/2 as Open-Sora 1.2 was trained: 1.2 billion parameters, 144p to 720p, three stages.

Cost of the published run: 96 H100s for 30,000, 23,000 and 15,000 steps. Weights come in as
docs/weights.md tells; a next stage starts from what the one before it exported.

hf download DeepFloyd/t5-v1_1-xxl --local-dir weights/t5-v1_1-xxl
python -m vidgen.train --config=configs/opensora.py:stage=1,gpus=96 --config.data.path=SHARDS
--config.start_from=weights/stdit --workdir=runs/stage1
"""

from configs import common, recipes


def get_config(arg=""):
    arg = common.parse_arg(arg, stages=3, gpus=96)
    config = common.full()
    config.num_steps = {1: 30_000, 2: 23_000, 3: 15_000}[arg.stage]
    config.data.buckets = recipes.buckets(arg.stage, arg.gpus)
    config.data.mask_ratios = recipes.masks(arg.stage)
    config.schedule.lr = 1e-4
    config.schedule.warmup_steps = {1: 1000, 2: 0, 3: 1000}[arg.stage]
    return config
