"""What the embedded clips show, and how captions say it: attributes, wordings, what is held out.

Lengths are in short sides of the picture, speeds in short sides per second.
"""

import dataclasses

import numpy as np

SHAPES = ("circle", "bar", "triangle")
COLOURS = {  # sRGB, far apart in hue, and from the backgrounds also at half the chroma resolution
    "red": (225, 25, 25),
    "green": (20, 160, 40),
    "blue": (30, 50, 225),
    "yellow": (240, 205, 0),
    "magenta": (220, 20, 200),
    "cyan": (0, 195, 210),
}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
SPEEDS = {"slow": 0.12, "fast": 0.27}  # short sides per second
SIZES = {"small": 0.17, "large": 0.25}  # radius in short sides
BACKGROUNDS = {"black": (8, 8, 8), "gray": (80, 80, 80), "navy": (12, 16, 88)}
ATTRIBUTES = ("shape", "colour", "direction", "speed", "size", "background")
VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "direction": tuple(DIRECTIONS),
    "speed": tuple(SPEEDS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}
_ADVERBS = {"slow": "slowly", "fast": "quickly"}
_VIDEO_CAPTIONS = (
    "a {size} {colour} {shape} moves {direction} {adverb} on a {background} background",
    "a {size} {colour} {shape} moving {adverb} {direction} on {background}",
    "{size} {colour} {shape} moving {direction} {adverb}, {background} background",
    "a {size} {colour} {shape} goes {direction} {adverb} on {background}",
)
_IMAGE_CAPTIONS = (
    "a {size} {colour} {shape} on a {background} background",
    "an image of a {size} {colour} {shape} on {background}",
    "{size} {colour} {shape}, {background} background",
    "a still {size} {colour} {shape} on {background}",
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What a clip shows. `direction` and `speed` are None for a still image."""

    shape: str
    colour: str
    direction: str | None
    speed: str | None
    size: str
    background: str


def held_out(attributes: Attributes) -> bool:
    """Tells whether this combination of shape, colour and direction is kept out of training.

    A fixed rule, by the places of the values in VALUES: every fifth of the 72 combinations, evenly
    spread, so that a pair of values keeps at least two thirds of its combinations.
    """
    if attributes.direction is None:
        return False
    place = lambda k: VALUES[k].index(getattr(attributes, k))
    return (place("shape") + 2 * place("colour") + 3 * place("direction")) % 5 == 0


def sample_attributes(rng: np.random.Generator, *, image: bool = False) -> Attributes:
    """Draws attributes for training: all values alike, held-out combinations never."""
    while True:
        drawn = Attributes(**{k: str(rng.choice(VALUES[k])) for k in ATTRIBUTES})
        if image:
            drawn = dataclasses.replace(drawn, direction=None, speed=None)
        if not held_out(drawn):
            return drawn


def caption(attributes: Attributes, rng: np.random.Generator | None = None) -> str:
    """Returns a caption naming every attribute, lower case, at most 80 bytes.

    Without `rng` it is the first wording, e.g. "a small red circle moves left slowly on a black
    background".
    """
    wordings = _IMAGE_CAPTIONS if attributes.direction is None else _VIDEO_CAPTIONS
    wording = wordings[0 if rng is None else int(rng.integers(len(wordings)))]
    return wording.format(adverb=_ADVERBS.get(attributes.speed), **dataclasses.asdict(attributes))


def parse(text: str) -> dict[str, str | None]:
    """Reads the attributes that a caption names; None for those that it does not name."""
    words = text.lower().replace(",", " ").split()
    words = [{"slowly": "slow", "quickly": "fast"}.get(word, word) for word in words]
    return {k: next((w for w in words if w in values), None) for k, values in VALUES.items()}


def held_out_prompts(n: int, seed: int) -> list[tuple[str, Attributes]]:
    """Returns n (prompt, attributes) of combinations that training never shows."""
    rng = np.random.default_rng((seed, n))
    prompts = []
    while len(prompts) < n:
        drawn = Attributes(**{k: str(rng.choice(VALUES[k])) for k in ATTRIBUTES})
        if held_out(drawn):
            prompts.append((caption(drawn, rng), drawn))
    return prompts
