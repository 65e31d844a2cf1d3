"""A folder as users have them, with good files and bad, for commands that are called wrongly."""

import json
import pathlib

from tests import toy_runs, toy_training
from vidgen import evaluate
from vidgen.training import workdir

CONFIG = f"""
from configs import tiny

def get_config():
    config = tiny.get_config()
    config.vae.model.update_from_flattened_dict({toy_training.VAE})
    config.data.path, config.vae.weights = "shards", "vae.safetensors"
    %s
    return config
"""
GARBAGE = bytes(range(256)) * 8
KINDS = ("bin", "csv", "json", "mp4", "parquet", "pth", "py", "safetensors", "tar", "txt")


def make(folder: pathlib.Path) -> None:
    """Fills the folder."""
    toy_training.data(folder)
    toy_training.random_latents(folder / "latents")
    run = toy_runs.text_to_video(folder, toy_training.config())
    toy_runs.autoencoder(folder / "vae_run", toy_training.config())
    note = (run / "run.json").read_bytes()
    workdir.Run(folder / "unsaved", json.loads(note)["config"], "none").keep()
    table = "data.buckets"
    shares = dict.fromkeys(evaluate.COLUMNS, 1.0)
    row = dict.fromkeys(("accuracy", "low", "high", "chance"), 0.5)
    results = {
        "prompt_following": dict.fromkeys(evaluate.COLUMNS, row),
        "prompt_following_raw": {},
        **{"judge": shares, "judge_through_vae": shares, "vae_psnr": 30.0, "clips": []},
        **{"videos": 3, "raw_videos": 0, "parameters": {"model": 1, "vae": 1}, "machine": {}},
        "settings": {"height": 32, "width": 32, "num_frames": 17, "fps": 12.0, "steps": 30}
        | {"guidance": 4.0, "seed": 0, "step": 30, "unseen_in_captions": 44},
        "seconds": {"all": 95.0},
    }
    clip = {"prompt": "circle", "wanted": {}, "read": {}, "generated": "gone.mp4"}
    files = {
        "tiny.py": CONFIG % "",
        "no_buckets.py": CONFIG % f"config.{table} = {{}}",
        "bad_frames.py": CONFIG % f'config.{table} = {{"32": {{"16": (1.0, 2)}}}}',
        "bad_size.py": CONFIG % f'config.{table} = {{"33p": {{"17": (1.0, 2)}}}}',
        "bad_entry.py": CONFIG % f'config.{table} = {{"32": {{"17": (1.0,)}}}}',
        "long.py": CONFIG % f'config.{table} = {{"32": {{"510": (1.0, 2)}}}}',
        "syntax.py": "def get_config(:\n    return 1\n",
        "other.py": "x = 1\n",
        "nothing.py": "def get_config():\n    pass\n",
        "torn/run.json": note[:200],
        "full/notes.txt": "mine\n",
        "empty.txt": "",
        "empty.csv": "",
        "header.csv": "path,text\n",
        "columns.csv": "file,caption\nclips/clips/000000.mp4,a circle\n",
        "cut.csv": 'path,text\nclips/clips/000000.mp4,"a small yel',
        "gone.csv": "path,text\nnothere.mp4,a circle\n",
        "cut.jsonl": '{"path": "clips/clips/000000.mp4", "te',
        "cut.json": '{"32": {"17": [1.0, ',
        "list.json": "[1, 2]\n",
        "results.json": json.dumps(results),
        "results_half.json": json.dumps({"prompt_following": results["prompt_following"]}),
        "results_gone.json": json.dumps(results | {"clips": [clip]}),
        "lines/metrics.jsonl": GARBAGE,
        "lists/metrics.jsonl": "[1, 2]\n",
        "imported_cut/model.json": '{"layout": "vae", "argum',
        "imported_list/model.json": "[1, 2]\n",
        "imported_empty/model.json": json.dumps(
            {"layout": "vae", "arguments": {}, "config": {}, "source": "x"}
        ),
        "urls.txt": "https://example.invalid/a.mp4 a.mp4\n",
        "urls_twice.txt": "https://example.com/a.mp4 a.mp4\nhttps://example.com/b.mp4 a.mp4\n",
        "urls_out.txt": "https://example.com/a.mp4 ../../a.mp4\n",
        "urls_digest.txt": "https://example.com/a.mp4 a.mp4 1234\n",
        "urls_none.txt": "a red circle\n",
        "sums.txt": "1234 a.mp4\n",
        "urls_page.txt": "https://youtu.be/a a.mp4\nhttps://x.invalid/b.mp4\n",
        "miradata.csv": "clip_id,video_url\n",
        "mira/miradata.csv": "clip_id,video_url,dense_caption,timestamp\n231.4,https://x.invalid/a,"
        "a circle,\"['00:00:01.000', '00:00:02.000']\"\n",
        "two/miradata1.csv": "clip_id\n",
        "two/miradata2.csv": "clip_id\n",
        "shapes_cut/shapes.json": '{"se',
        "shapes_list/shapes.json": "[1, 2]",
    }
    files |= {f"garbage.{kind}": GARBAGE for kind in KINDS}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
