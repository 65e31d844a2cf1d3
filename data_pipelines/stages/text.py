"""What is done to captions on the way to training: prefixes, links, scores and camera in words.

The operations are those of Open-Sora 1.2's `datautil` (spec 9.7); `docs/datautil.md` maps them.
Cleaning by its rules for prompts is `caption_cleaning.clean`.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

SCORE_NAMES = {"aesthetic": "aesthetic score", "motion": "motion score"}  # column -> words
SCORE_SHARE = 0.8  # each score is told to the model in so many of the captions

# how captions of language models begin: 15 different phrases, one of which says nothing
_VERBS = {"video": "shows|captures|features|depicts|presents|is"}
_VERBS["image"] = _VERBS["video"] + "|portrays"
_PREFIX = re.compile(
    "|".join(f"(?:the {kind} (?:{v})\\b|in the {kind},)" for kind, v in _VERBS.items()), re.I
)
_LINK = re.compile(r"https?://\S")


def one_line(caption: str, max_characters: int) -> str:
    """Returns a text without control characters and line breaks, cut at a word's end."""
    caption = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption)
    caption = " ".join(caption.split())
    if len(caption) <= max_characters:
        return caption
    return caption[: max_characters + 1].rpartition(" ")[0] or caption[:max_characters]


def strip_prefix(caption: str) -> str:
    """Takes "The video shows" and the like from the beginning, and capitalises what is left."""
    found = _PREFIX.match(caption)
    rest = caption[found.end() :].strip() if found else ""
    return rest[0].upper() + rest[1:] if rest else caption


def has_link(caption: str) -> bool:
    """Tells whether a caption holds an http address: captions like that describe a web page."""
    return _LINK.search(caption) is not None


def add_scores(caption: str, scores: Mapping[str, float | None], id: str, *, seed: int = 0) -> str:
    """Appends scores that a prompt can ask for: "text [aesthetic score: 5.5, motion score: 10.0]".

    Each score is left out in a fifth of the captions, so that a model works without. Which ones
    follows from (seed, id) alone.

    Args:
        caption: The caption; its own text stays as it is.
        scores: A ledger row, or any mapping with some of SCORE_NAMES; None is not measured.
        id: Id of the clip.
        seed: Another seed leaves out other scores.
    """
    digest = hashlib.sha256(f"{seed} {id}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    keep = rng.random(len(SCORE_NAMES)) < SCORE_SHARE
    told = [
        f"{words}: {scores[name]:.1f}"
        for (name, words), kept in zip(SCORE_NAMES.items(), keep, strict=True)
        if kept and scores.get(name) is not None
    ]
    return f"{caption} [{', '.join(told)}]" if told else caption


def add_camera(caption: str, camera: str | None) -> str:
    """Appends " Camera motion: pan left." for a label of `stages.camera`, unless it is unknown."""
    if camera in (None, "", "unknown"):
        return caption
    return f"{caption} Camera motion: {camera.replace('_', ' ')}."


def is_english(caption: str) -> bool:
    """Tells whether English is among the five likeliest languages of a text, as lingua sees it.

    Raises:
        ImportError: If lingua is not installed.
    """
    likely = _detector().compute_language_confidence_values(caption)[:5]
    return lingua().Language.ENGLISH in [value.language for value in likely]


def lingua():
    """Returns the package that tells languages apart.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import lingua as package
    except ImportError as error:
        raise ImportError(
            f"telling languages apart needs lingua ({error}): pip install lingua-language-detector"
        ) from error
    return package


@functools.cache
def _detector():
    builder = lingua().LanguageDetectorBuilder.from_all_spoken_languages()
    return builder.with_low_accuracy_mode().build()
