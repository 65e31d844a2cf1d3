"""Bounds of a config's values, which every command checks before it begins.

Only those that hold for whatever is done with the config stand here. Those of a run are checked
when it starts (`training.resolve`), and what depends on models or data where it is used.
"""

import math
from collections.abc import Mapping
from typing import Any

_LEAST = {  # field: the least value
    "seed": 0,
    "data.frame_interval": 1,
    "data.workers": 0,
    "model.width": 1,
    "model.depth": 1,
    "model.heads": 1,
    "text.max_tokens": 2,  # a text ends in a token
    "vae.image_frames": 1,
    "schedule.cooldown_steps": 0,
    "optim.weight_decay": 0,
}
_SHARES = ("data.text_dropout", "data.bad_limit", "schedule.end", "optim.b1", "optim.b2")
_POSITIVE = ("data.deadline_seconds", "flow.base_size", "flow.position_size", "flow.shift")
_CHOICES = {
    "task": ("text_to_video", "autoencoder"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "schedule.decay": ("constant", "cosine", "one_cycle"),
}


def problems(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of a config, given by dotted name; a line for each."""
    found = []
    for name, value in fields.items():
        if value not in _CHOICES.get(name, (value,)):
            found.append(f"--config.{name}={value} is unknown: use {' or '.join(_CHOICES[name])}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        fits, wanted = True, ""
        if math.isnan(value):
            fits, wanted = False, "a number"
        elif name in _LEAST:
            fits, wanted = value >= _LEAST[name], f"{_LEAST[name]} or more"
        elif name in _SHARES:
            fits, wanted = 0 <= value <= 1, "a share from 0 to 1"
        elif name in _POSITIVE:
            fits, wanted = value > 0, "a number above 0"
        if not fits:
            found.append(f"--config.{name}={value} does not fit: give {wanted}.")
    return found
