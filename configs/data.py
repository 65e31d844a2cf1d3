"""How a data set is made from its source: what is measured, what is kept, what the captions become.

python -m data_pipelines.pipeline --source=clips.csv --out=shards --config=configs/data.py

Every field is a flag (`--config.dedup.near=6`); the items of a tuple are separated by semicolons
(`--config.rules="motion >= 0.5; 2 <= seconds <= 30"`). Without `--config` the command does what
`base` says: every frame is decoded and every file hashed, and nothing else. This config cuts videos
at their scene changes, measures all that needs no weights, and drops copies. On one core of an
Intel Xeon: docs/prepare_data.md.
"""

from ml_collections import ConfigDict, config_dict

SCORES = ("motion", "camera", "sharpness", "brightness", "static_share", "black_share")
SCORES += ("letterbox", "phash")


def base() -> ConfigDict:
    """Every field with its default."""
    config = ConfigDict()
    config.limits = ConfigDict()  # what one file may cost; over it, it is left out
    config.limits.max_bytes = 2 << 30
    config.limits.max_frames = 20_000
    config.limits.max_pixels = 4096 * 4096  # of one frame
    config.limits.max_video_pixels = 40 << 30  # of all frames together
    config.limits.max_uneven = 0.1  # share of frames that come too early or late: variable rate
    config.limits.deadline_seconds = 300.0
    config.limits.memory_bytes = 512 << 20  # of the process that decodes

    config.cuts = ConfigDict()  # of videos into scenes, a clip each
    config.cuts.enabled = False
    config.cuts.threshold = 3.0  # PySceneDetect's adaptive_threshold
    config.cuts.min_seconds = 0.0  # shorter scenes are left out
    config.cuts.max_seconds = config_dict.placeholder(float)  # longer scenes end here
    config.cuts.split_long = False  # the rest of a longer scene is another, instead of nothing
    config.scores = ()  # of SCORES: what is measured while a file is decoded

    config.models = ConfigDict()  # scores with weights, each by path; empty: not measured
    config.models.clip = ""  # folder of a CLIP model: the score "match"
    config.models.aesthetic = ""  # its aesthetic head: the score "aesthetic"
    config.models.text = ""  # ONNX file of a DB text detector: the score "text_share"
    config.models.num_stills = 3  # frames of a clip that models and the endpoint see
    config.models.allow_pickle = False  # weights in .pth and .bin files

    config.endpoint = ConfigDict()  # captions from any OpenAI-compatible endpoint
    config.endpoint.url = ""  # "http://localhost:8000/v1"; empty: captions as the source gives them
    config.endpoint.model = ""
    config.endpoint.prompt = ""  # empty: our own
    config.endpoint.parallel = 8
    config.endpoint.timeout = 120.0  # seconds

    config.captions = ConfigDict()
    config.captions.strip_prefix = False  # "The video shows ..."
    config.captions.drop_links = False  # leave clips out whose caption holds an http address
    config.captions.english = False  # leave clips out whose caption is not English
    config.captions.clean = False  # lower case and more, as Open-Sora 1.2 does it
    config.captions.add_camera = False  # "... Camera motion: pan left."
    config.captions.add_scores = False  # "... [aesthetic score: 5.5, motion score: 10.0]"

    config.rules = ()  # what a clip has to pass: "motion >= 0.1"
    config.dedup = ConfigDict()
    config.dedup.exact = False  # equal frames of equal files
    config.dedup.near = -1  # bits of 64 that perceptual hashes may differ in; -1: not compared

    config.shards = ConfigDict()
    config.shards.bytes = 128 << 20
    config.shards.short_side = 0  # larger videos are made smaller; 0: never
    config.shards.crf = 10  # quality of scenes, which are encoded again: 0 (best) to 51
    return config


def get_config() -> ConfigDict:
    config = base()
    config.cuts.enabled = True
    config.cuts.min_seconds = 2.0
    config.cuts.max_seconds = 16.0
    config.cuts.split_long = True
    config.scores = SCORES
    config.captions.strip_prefix = True
    config.captions.drop_links = True
    config.rules = (
        "kind == 'image' or motion >= 0.5",
        "static_share is None or static_share <= 0.5",
        "black_share <= 0.1",
        "letterbox <= 0.3",
        "short_side >= 240",
    )
    config.dedup.exact = True
    config.dedup.near = 8
    return config
