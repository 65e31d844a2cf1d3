"""Configs of the published recipes: sizes, tables and schedules, without allocating weights."""

import importlib
import math

import jax
import pytest

from configs import common, lambda_run, opensora
from data_pipelines.loading import buckets, resolutions, transforms
from vidgen import tasks
from vidgen.diffusion import encoders
from vidgen.training import optim

STAGES = [(opensora, stage) for stage in (1, 2, 3)]
STAGES += [(lambda_run, stage) for stage in range(1, 8)]


def without_folder(module, arg=""):
    """The config of a machine that has no T5 at hand."""
    config = module.get_config(arg)
    config.text.folder = ""
    return config


def count(shapes):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_the_full_models_have_the_published_sizes():
    config = without_folder(opensora)
    task = tasks.make_task(config)
    null_caption = 300 * 4096  # a buffer there, not a parameter
    assert count(jax.eval_shape(task.init, jax.random.key(0))) == 1_207_643_972 + null_caption
    _, init_vae = encoders.split(encoders.vae_maker(config))
    # and 4 + 4 statistics of the latents
    assert count(jax.eval_shape(init_vae, jax.random.key(0))) == 83_653_863 + 309_687_144 + 8


@pytest.mark.parametrize("module, stage", STAGES)
def test_every_stage_has_a_sound_table_masks_and_schedule(module, stage):
    config = module.get_config(f"stage={stage},gpus=8")
    table = buckets.Table(encoders.bucket_table(config), None, config.data.frame_interval)
    assert all(bucket.batch_size % 8 == 0 for bucket in table.all_buckets())
    transforms.check_mask_ratios(config.data.mask_ratios.to_dict())
    rate = optim.schedule(config.num_steps, **config.schedule.to_dict())
    peak = max(float(rate(step)) for step in range(0, config.num_steps, 100))
    assert peak <= config.schedule.get("lr_peak", config.schedule.lr) * (1 + 1e-6)
    assert float(rate(config.num_steps)) == pytest.approx(config.schedule.lr)


def test_the_first_stage_has_26_programs_and_20_percent_masks():
    config = lambda_run.get_config()
    table = encoders.bucket_table(config)
    assert sum(len(entries) for entries in table.values()) == 26
    assert sum(config.data.mask_ratios.values()) == pytest.approx(0.2)
    assert table["256"][102] == ((0.5, 0.33), 10 * 192)
    assert encoders.bucket_table(opensora.get_config("stage=3"))["480p"][408] == (0.0, None)


def test_one_cycle_rises_to_four_times_the_rate():
    config = lambda_run.get_config("stage=6")
    rate = optim.schedule(config.num_steps, **config.schedule.to_dict())
    for step, expected in ((0, 1.6e-5), (400, 3.2e-4), (800, 0.8e-4)):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-3)


def test_a_step_of_each_bucket_costs_about_the_same():  # the batch sizes were searched for that
    config = without_folder(opensora, "gpus=1")
    task, costs = tasks.make_task(config), []
    for resolution, entries in encoders.bucket_table(config).items():
        height, width = resolutions.sizes(resolution)["1.00"]
        for frames, (_, batch_size) in entries.items():
            bucket = buckets.Bucket(resolution, frames, "1.00", height, width, batch_size)
            costs.append(3 * bucket.batch_size * task.forward_flops(bucket))
    assert max(costs) < 4 * min(costs)


@pytest.mark.parametrize("arg", ["stage=0", "stage=8", "stage", "steps=3", "gpus=-1", "stage=1;2"])
def test_what_follows_the_colon_is_checked(arg):
    with pytest.raises(ValueError, match=r"stage"):
        lambda_run.get_config(arg)


@pytest.mark.parametrize("name", ["tiny", "quickstart", "quickstart_vae", "opensora", "lambda_run"])
def test_a_config_sets_no_field_that_the_base_lacks(name):
    known = set(dotted(common.base())) | {"schedule.lr_start", "schedule.lr_peak"}
    found = dotted(importlib.import_module(f"configs.{name}").get_config())
    values = ("data.buckets.", "data.mask_ratios.", "preview.settings.", "schedule.cooldown_steps")
    assert not [field for field in found if field not in known and not field.startswith(values)]


def dotted(config, prefix=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name
