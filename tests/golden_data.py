"""Golden cases without tensors of a model: buckets, masks, sizes, rates, prompts, captions."""

import collections
import itertools
import math

import golden_utils
import numpy as np

from data_pipelines.loading import buckets, resolutions, transforms
from data_pipelines.stages import caption_cleaning
from vidgen.diffusion import flow, prompts
from vidgen.models import layers, stdit, text, vae
from vidgen.training import optim
from vidgen.weights import torch_names

COMPAT = "open-sora-1.2"
_XL = {"width": 1152, "depth": 28, "heads": 16, "text_width": 4096, "text_tokens": 300}
_XXL = {"vocab_size": 32128, "width": 4096, "head_width": 64, "heads": 64, "mlp_width": 10240}
FULL_SIZE = {
    "STDiT3-XL/2": (
        lambda rngs: stdit.STDiT(**_XL, rngs=rngs),
        lambda shapes: torch_names.stdit(shapes, (2, 2)),
    ),
    "OpenSoraVAE_V1_2": (lambda rngs: vae.VideoVAE(rngs=rngs), torch_names.vae),
    "t5-v1_1-xxl encoder": (
        lambda rngs: text.T5Encoder(**_XXL, depth=24, rngs=rngs),
        torch_names.t5,
    ),
}


def check_buckets(case):
    videos, seed = case.take("videos"), case.take("sampler_seed")
    for stage in case.take("stages").values():
        table = buckets.Table(stage["bucket_config"])
        assert table.num_buckets == stage["num_bucket"]
        order = [[k, [[e.num_frames, e.ordinal] for e in v]] for k, v in table.entries.items()]
        assert order == stage["bucket_order"]
        known = {"bucket_config", "bucket_config_probability_one", "num_bucket", "bucket_order"}
        for name in sorted(set(stage) - known):
            chances, interval = name.rsplit("_frame_interval_", 1)
            config = {
                "probability_one": "bucket_config_probability_one",
                "configured_probabilities": "bucket_config",
            }[chances]
            table = buckets.Table(stage[config], frame_interval=int(interval))
            for video, row in zip(videos, stage[name], strict=True):
                size = (video["num_frames"], video["height"], video["width"])
                got = table.assign(*size, row=video["id"], epoch=0, seed=seed)
                expected = row and buckets.Bucket(*row[:3], *row[4:7])
                assert got == expected, (name, video)
    for resolution, sizes in case.take("target_size_by_resolution_and_aspect").items():
        assert resolutions.pixels(resolution) == sizes["pixels"]
        assert resolutions.sizes(resolution) == {k: tuple(v) for k, v in sizes["sizes"].items()}
    for resolution, ratio, height, width in case.take("get_image_size"):
        assert resolutions.image_size(resolution, ratio) == (height, width)
    for name, frames in case.take("get_num_frames"):
        assert buckets.parse_num_frames(name) == frames
    for height, width, resolution, aspect in case.take("closest_aspect"):
        assert resolutions.closest_aspect(height, width, resolution) == aspect
    for frames, chunked, whole, temporal in case.take("latent_frames"):
        assert transforms.latent_frames(frames) == vae.latent_frames(frames) == chunked
        assert transforms.latent_frames(frames, chunk_frames=None) == whole == temporal
    for height, width, h, w in case.take("latent_spatial"):
        assert vae.latent_shape(1, height, width)[1:3] == (h, w)
    assert case.take("latent_size_unknown_dims") == [None] * 3  # sizes are known here
    for row in case.take("tokens_per_bucket"):
        resolution, frames, aspect, height, width, *latent, t, rows, columns, tokens = row
        assert resolutions.sizes(resolution)[aspect] == (height, width)
        assert list(vae.latent_shape(frames, height, width)[:3]) == latent
        assert layers.patch_grid(*latent[1:], (2, 2)) == (rows, columns)
        assert t * rows * columns == tokens and t == latent[0]


class Replay:
    """A generator that gives listed numbers, and checks that they are asked for as listed."""

    def __init__(self, draws):
        self.draws = list(draws)

    def random(self, size=None):
        if size is not None:
            return np.array([self.random() for _ in range(size)])
        kind, _, value = self.draws.pop(0)
        assert kind == "random"
        return value

    def uniform(self, low, high):
        kind, _, value = self.draws.pop(0)
        assert kind == "uniform" and (low, high) == (0.1, 0.9)
        return value

    def integers(self, low, high, endpoint):
        kind, limits, value = self.draws.pop(0)
        assert kind == "randint" and limits == [low, high] and endpoint
        return value


class AllDraws:
    """A generator that goes through all integers it may draw: one path a pass."""

    def __init__(self):
        self.path, self.place = [], 0

    def random(self):
        return 0.0

    def integers(self, low, high, endpoint):
        count = high - low + endpoint
        if self.place == len(self.path):
            self.path.append([0, count])
        choice, known = self.path[self.place]
        assert known == count
        self.place += 1
        return low + choice

    def chance(self):
        return np.prod([1 / count for _, count in self.path])

    def advance(self):
        """Goes to the next path; False after the last."""
        self.place = 0
        while self.path and self.path[-1][0] == self.path[-1][1] - 1:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        return bool(self.path)


def name_of(mask_t):
    return "".join(str(int(m)) for m in mask_t)


def mask_chances(name, t):
    """Every mask of a strategy and its exact chance."""
    found, draws = collections.Counter(), AllDraws()
    for _ in itertools.count():
        found[name_of(transforms.frame_mask(t, {name: 1.0}, draws))] += draws.chance()
        if not draws.advance():
            return found


def check_masks(case):
    for name, by_length in case.take("possible_masks").items():
        for t, expected in by_length.items():
            if "error" in expected:
                continue  # the original fails; ours gives one frame at least
            if all(set(mask) == {"0"} for mask in expected):
                expected = {"0" * (int(t) - 1) + "1": 1.0}  # nothing left to learn: the last is
            got = mask_chances(name, int(t))
            assert set(got) == set(expected), (name, t)
            for mask, chance in expected.items():
                case.compare(f"{name}/{t}/{mask}", got[mask], chance, 1e-9)
    for entry in case.take("random_strategy_with_given_draws"):
        draws = [["random", [], 0.0], ["uniform", [], entry["mask_ratio"]]]
        draws += [["random", [], u] for u in entry["uniform"]]
        draws = draws[: 1 if entry["num_frames"] == 1 else None]
        got = transforms.frame_mask(entry["num_frames"], {"random": 1.0}, Replay(draws))
        assert name_of(got) == entry["mask"]
    for stage in case.take("choice_of_strategy").values():
        for draw, name in stage["choice_for_draw"]:
            assert transforms.choose_mask(draw, stage["configured"]) == name
        completed = dict(stage["completed_in_order"])
        rest = completed.pop("identity")
        assert list(completed.items()) == list(stage["configured"].items())
        case.compare("identity", 1 - sum(completed.values()), rest, 1e-9)
    for batch in case.take("seeded_batches"):
        rng = Replay(batch["draws"])
        for expected in batch["masks"]:
            assert name_of(
                transforms.frame_mask(batch["num_frames"], batch["mask_ratios"], rng)
            ) == (expected)
        assert not rng.draws


def check_resize_crop(case):
    for name, settings in case.config["cases"].items():
        height, width = settings["target_size"]
        frames_THWC = np.moveaxis(case.inputs(name)["frames"], 1, -1)
        unit_THWC = transforms.resize_crop(frames_THWC, height, width)
        assert unit_THWC.dtype == np.float32
        image_HWC = transforms.resize_crop_image(frames_THWC[0], height, width)
        first = lambda x: np.moveaxis(x, -1, -3)
        got = {"video_unit": first(unit_THWC), "image_uint8": first(image_HWC)}
        got["video"] = 2 * got["video_unit"] - 1
        got["image"] = got["image_uint8"].astype(np.float32) / np.float32(127.5) - 1
        case.check_all(name, got)


def check_lr_schedules(case):
    for entry in case.take("schedules"):
        if entry["kind"] == "linear_warmup":
            settings = {"lr": entry["base_lr"]}
        else:
            assert entry["kind"] == "one_cycle"
            settings = {"lr": entry["final_lr"], "lr_start": entry["min_lr"], "decay": "one_cycle"}
            settings |= {"lr_peak": entry["max_lr"], "cooldown_steps": entry["cooldown_steps"]}
            settings |= {"anneal": entry["anneal"], "compat": COMPAT}
        expected = np.asarray(entry["lr_at_step"])
        rate = optim.schedule(len(expected), warmup_steps=entry["warmup_steps"], **settings)
        got = [rate(k) for k in range(len(expected))]
        case.compare(entry["kind"], got, expected, 1e-6 * expected)  # float32


def check_text_preprocessing(case):
    for entry in case.take("captions"):
        text = entry["input"]
        assert caption_cleaning.repair(text) == entry["basic_clean"]
        assert caption_cleaning.clean_once(text) == entry["cleaned_once"]
        assert caption_cleaning.clean(text) == entry["output"]
        assert text.lower().strip() == entry["output_without_preprocessing"]


def check_prompt_helpers(case):
    entries = case.take("split_merge")
    for entry in entries:
        segments, loops = prompts.split(entry["prompt"])
        assert (segments, loops) == (entry["segments"], entry["loop_index"])
        assert prompts.merge(segments, loops) == entry["merged"]
    for loop, texts in case.take("prompt_at_loop"):
        assert [prompts.at_loop(entry["prompt"], loop) for entry in entries] == texts
    for entry in case.take("append_score"):
        names = {"aes": "aesthetic", "flow": "motion", "camera_motion": "camera"}
        scores = {names[name]: value for name, value in entry["args"].items()}
        assert [prompts.append_scores(p, **scores) for p in entry["prompts"]] == entry["output"]
    entry = case.take("prompt_json")
    texts, settings = zip(*map(prompts.split_json, entry["prompts"]), strict=True)
    assert list(texts) == entry["output"]
    assert [s.get("reference_path", "") for s in settings] == entry["reference"]
    assert [s.get("mask_strategy", "") for s in settings] == entry["mask_strategy"]
    for strategy, expected in case.take("parse_mask_strategy"):
        assert [list(entry) for entry in prompts.parse_mask_strategy(strategy)] == expected
    for value, step, length, expected in case.take("find_nearest_point"):
        assert prompts.nearest_multiple(value, step, length) == expected
    for latent_frames, frames in case.take("latent_frames_to_frames"):
        assert prompts.pixel_frames(latent_frames) == frames
    for entry in case.take("apply_mask_strategy"):
        column = lambda values: np.asarray(values, np.float32)[:, None, None, None]
        references = [
            [column(100 * (k + 1) + np.arange(length)) for k, length in enumerate(lengths)]
            for lengths in entry["reference_lengths"]
        ]
        zeros = np.zeros((len(entry["strategy"]), entry["latent_frames"], 1, 1, 1))
        latent, edit_Bt = prompts.place_references(
            zeros, references, entry["strategy"], entry["loop"], entry["align"]
        )
        np.testing.assert_array_equal(latent[..., 0, 0, 0], entry["z"])
        np.testing.assert_array_equal(edit_Bt, np.float32(entry["mask"]))
    for entry in case.take("multi_resolution_info"):
        height, width = entry["image_size"]
        clips = len(entry["output"]["height"])
        got = prompts.conditioning(clips, height, width, entry["num_frames"], entry["fps"])
        assert {name: value.tolist() for name, value in got.items()} == entry["output"]


def check_full_size(case):
    """Names, shapes and counts of the published models, from shapes alone."""
    counts = dict(case.take("counts"))
    for name, published in case.take("shapes").items():
        make, list_tensors = FULL_SIZE[name]
        shapes = golden_utils.shapes_of(golden_utils.abstract(make))
        tensors = list_tensors(shapes)
        got = {n: list(t.shape) for t in tensors for n in (t.name, *t.aliases)}
        assert got == published
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        expected = counts.pop(name)
        assert sum(math.prod(s) for s in got.values()) == expected.pop(
            "total_elements_in_state_dict"
        )
        if expected:
            null_caption = sizes["y_embedder/y_embedding"]
            assert sum(sizes.values()) - null_caption == expected.pop("parameters")
            frozen = sum(n for p, n in sizes.items() if p.startswith("y_embedder/"))
            frozen += sizes["rope_freqs"]
            assert sum(sizes.values()) - frozen == expected.pop("frozen_y_embedder_trainable")
        assert not expected
    assert not counts


def exact_ratio(inputs):
    """`flow.shift_ratio`, with the reference's zero for 2 to 16 frames, which ours leaves out."""
    size = [np.asarray(inputs[name]) for name in ("height", "width", "num_frames")]
    return np.where((size[2] > 1) & (size[2] < 17), 0, flow.shift_ratio(*size))


def check_timestep_warp(case, variant):
    """The warp of the sampler's and the trainer's times, with exact and with rounded sizes."""
    inputs = case.inputs(variant)
    size = [inputs[name] for name in ("height", "width", "num_frames")]
    u = inputs["t"][None, None] / 1000
    ratio = exact_ratio(inputs)[None, :, None]
    case.check(f"{variant}/t", 1000 * flow.shift_t(u, inputs["scale"][:, None, None] * ratio))
    ratio = np.asarray(flow.shift_ratio(*size, compat=COMPAT))[None, :, None]
    case.check(f"{variant}/t_bfloat16_metadata", 1000 * flow.shift_t(u, ratio)[0])
