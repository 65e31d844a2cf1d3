"""STDiT3-XL/2 as in LambdaLabs' tutorial: OpenVid-1M, then MiraData too, seven stages.

Cost of the published run: 192 H100s; the steps are those that its checkpoints name. Stage 1 starts
from PixArt-Sigma (`vidgen.convert --layout=pixart`), each other one from the stage before. The
config of stage 7 was not published: it is said to be that of stage 6.

python -m vidgen.train --config=configs/lambda_run.py:stage=1,gpus=192 --config.data.path=SHARDS
--config.start_from=weights/pixart --workdir=runs/stage1
"""

from configs import common, recipes

_STEPS = {1: 2210, 2: 7099, 3: 14_778, 4: 2100, 5: 3300, 6: 2900, 7: 2900}  # 7: as 6


def get_config(arg=""):
    arg = common.parse_arg(arg, stages=7, gpus=192)
    config = common.full()
    config.num_steps = _STEPS[arg.stage]
    config.checkpoint_every = 100
    config.optim.weight_decay = 0.01
    table = {1: 1, 2: 2, 3: 3, 4: 1, 5: 2, 6: 3, 7: 3}[arg.stage]
    config.data.buckets = recipes.buckets(table, arg.gpus)
    if arg.stage <= 3:
        config.data.mask_ratios = recipes.masks(table)
        config.schedule.lr = {1: 1.6e-4, 2: 1.6e-4, 3: 2e-4}[arg.stage]
        config.schedule.warmup_steps = {1: 400, 2: 400, 3: 1000}[arg.stage]
        return config
    config.schedule.decay = "one_cycle"
    config.schedule.lr = 1.6e-4 if arg.stage <= 5 else 0.8e-4
    config.schedule.lr_start = 1.6e-5
    config.schedule.lr_peak = 4 * config.schedule.lr
    config.schedule.warmup_steps = 400
    config.schedule.cooldown_steps = 400
    return config
