"""The grammar of prompts: texts by loop, score suffixes, JSON tails, and mask strategies (spec 8).

A prompt may read "|0|morning|2|noon", one text from each loop of a long video on; it may end in
JSON that names reference clips; and a mask strategy says where references go and how far they may
change: "loop,reference,reference_start,target_start,length,edit;...", with defaults from the right.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Placement(NamedTuple):
    """One entry of a mask strategy; counts latent frames, negative ones from the end.

    `edit` is how far the frames may change: 0 keeps them, 1 generates them anew.
    """

    loop: int = 0
    reference: int = 0
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit: float = 0.0


def split(prompt: str) -> tuple[list[str], list[int] | None]:
    """Parts of a prompt and the loop that each begins at; None if it has no such marks."""
    if not prompt.startswith("|0|"):
        return [prompt], None
    _, *parts = prompt.split("|")
    return [text.strip() for text in parts[1::2]], [int(number) for number in parts[::2]]


def merge(segments: Sequence[str], loops: Sequence[int] | None) -> str:
    """The reverse of `split`, without the spaces around the parts."""
    if loops is None:
        return segments[0]
    return "".join(f"|{loop}|{text}" for loop, text in zip(loops, segments, strict=True))


def at_loop(prompt: str, loop: int) -> str:
    """The text of a prompt that holds in a loop, counted from 0."""
    segments, loops = split(prompt)
    if loops is None:
        return prompt
    return [text for text, start in zip(segments, loops, strict=True) if start <= loop][-1]


def append_scores(
    prompt: str,
    *,
    aesthetic: float | None = None,
    motion: float | None = None,
    camera: str | None = None,
) -> str:
    """Adds the scores that the model learned to follow, unless the prompt names them already."""
    values = {
        "aesthetic score": None if aesthetic is None else f"{aesthetic:.1f}",
        "motion score": None if motion is None else f"{motion:.1f}",
        "camera motion": camera,
    }
    for name, value in values.items():
        if value is not None and f"{name}:" not in prompt:
            prompt = f"{prompt} {name}: {value}."
    return prompt


def split_json(prompt: str) -> tuple[str, dict[str, Any]]:
    """Text and settings of a prompt such as 'a dog {"reference_path": "a.png"}'.

    Raises:
        ValueError: If the braces hold no JSON object.
    """
    match = re.fullmatch(r"(.*?)(\{.*\})", prompt, re.DOTALL)
    if not match:
        return prompt, {}
    try:
        return match[1], json.loads(match[2])
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the prompt {prompt!r} ends in {match[2]!r}, which is no JSON ({error}): give it as "
            '{"reference_path": "a.png", "mask_strategy": "0"}, or leave out the braces.'
        ) from error


def parse_mask_strategy(text: str) -> list[Placement]:
    """Entries of a mask strategy; "" has none.

    Raises:
        ValueError: If an entry has more fields than a `Placement`, or one is no number.
    """
    entries = []
    for entry in filter(None, text.split(";")):
        fields = entry.split(",")
        try:
            whole = [int(field) for field in fields[:5]]
            entries.append(Placement(*whole, *[float(field) for field in fields[5:]]))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the mask strategy {text!r} has the entry {entry!r}: give up to six numbers, "
                f"{','.join(Placement._fields)}."
            ) from error
    return entries


def nearest_multiple(value: int, step: int, length: int) -> int:
    """The multiple of `step` nearest to `value`, halves downwards, that leaves a whole step below
    `length` when it moves upwards."""
    below, rest = divmod(value, step)
    return step * (below + (2 * rest > step and below < length // step - 1))


def pixel_frames(latent_frames: int, chunk_frames: int = 17, chunk_latents: int = 5) -> int:
    """Frames of whole chunks of latent frames.

    Raises:
        ValueError: If the last chunk is not whole.
    """
    if latent_frames % chunk_latents:
        raise ValueError(
            f"{latent_frames} latent frames are no whole chunks: use a multiple of {chunk_latents}."
        )
    return latent_frames // chunk_latents * chunk_frames


def place_references(
    latent_Bthwc: np.ndarray,
    references: Sequence[Sequence[np.ndarray]],
    strategies: Sequence[str],
    loop: int = 0,
    align: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts latents of references into the start of a video, as its mask strategy says.

    Args:
        latent_Bthwc: Noise to start from.
        references: Of each video, latents [t, h, w, c] of its references.
        strategies: Of each video, its mask strategy.
        loop: Entries of other loops are left out.
        align: Latent frames of a chunk; starts move to the nearest chunk, which decodes alone.

    Returns:
        (latent_Bthwc, edit_Bt): the start, and how far each frame may change, 1 where it is noise.
    """
    latent_Bthwc = np.array(latent_Bthwc)
    frames = latent_Bthwc.shape[1]
    edit_Bt = np.ones(latent_Bthwc.shape[:2], np.float32)
    for clip, strategy in enumerate(strategies):
        for entry in parse_mask_strategy(strategy):
            if entry.loop != loop:
                continue
            reference_thwc = references[clip][entry.reference]
            known = len(reference_thwc)
            start = entry.reference_start + (known if entry.reference_start < 0 else 0)
            target = entry.target_start + (frames if entry.target_start < 0 else 0)
            if align is not None:
                start = nearest_multiple(start, align, known)
                target = nearest_multiple(target, align, frames)
            length = min(entry.length, frames - target, known - start)
            latent_Bthwc[clip, target : target + length] = reference_thwc[start : start + length]
            edit_Bt[clip, target : target + length] = entry.edit
    return latent_Bthwc, edit_Bt


def conditioning(clips: int, height: int, width: int, num_frames: int, fps: float) -> dict:
    """What the original hands to its model beside text and time: float32 arrays [B] by name."""
    values = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "ar": height / width,
        "fps": 120 if num_frames == 1 else fps,  # an image
    }
    return {name: np.full(clips, value, np.float32) for name, value in values.items()}
