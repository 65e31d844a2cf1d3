"""The STDiT of the quickstart: text to video on the embedded data set, on a CPU, in minutes.

bash launch/quickstart.sh
"""

from configs import common


def get_config():
    config = common.base()
    config.num_steps = 5000
    config.data.path = "outputs/quickstart/latents"
    config.data.buckets = {"32": {"17": (1.0, 16), "1": (1.0, 16)}}
    config.vae.weights = "vidgen/assets/quickstart_vae.safetensors"
    config.model.heads = 6
    config.model.unroll = 3  # all of it: a quarter less time on a CPU
    config.flow.base_size = 32
    config.flow.position_size = 32
    config.flow.shift = 2.0  # few cells, alike in time: a clip shows through much noise
    config.schedule.lr = 4e-3
    config.schedule.warmup_steps = 50
    config.schedule.decay = "cosine"
    config.schedule.end = 0.02
    config.optim.b2 = 0.99
    config.ema_decay = 0.995
    config.checkpoint_every = 1000
    config.preview.settings = {"height": 32, "width": 32, "num_frames": 17, "fps": 12.0}
    config.preview.settings.update({"steps": 30, "guidance": 4.0})  # of sample and evaluate too
    return config
