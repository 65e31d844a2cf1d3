"""What is done to captions on the way to training: prefixes, links, scores and camera in words.

The operations are those of Open-Sora 1.2's `datautil` (spec 9.7); `docs/datautil.md` maps them.
Cleaning by its rules for prompts is `caption_cleaning.clean`.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from data_pipelines import caption_cleaning

SCORE_NAMES = {"aesthetic": "aesthetic score", "motion": "motion score"}  # column -> words
SCORE_SHARE = 0.8  # each score is told to the model in so many of the captions

# how captions of language models begin: 15 different phrases, one of which says nothing
_VERBS = {"video": "shows|captures|features|depicts|presents|is"}
_VERBS["image"] = _VERBS["video"] + "|portrays"
_PREFIX = re.compile(
    "|".join(f"(?:the {kind} (?:{v})\\b|in the {kind},)" for kind, v in _VERBS.items()), re.I
)
_LINK = re.compile(r"https?://\S")


@dataclasses.dataclass(frozen=True)
class Options:
    """What becomes of a caption, in this order; the fields say what is done when true.

    Raises:
        ImportError: If `english` is asked for and lingua is not installed.
    """

    drop_links: bool = False  # captions with an http address leave the clip out
    english: bool = False  # captions that are not English leave the clip out
    camera: bool = False  # " Camera motion: pan left."
    strip_prefix: bool = False  # "The video shows"
    append: str = ""  # the same words for every clip
    scores: bool = False  # " [aesthetic score: 5.5, motion score: 10.0]"
    clean: bool = False  # as the published model reads prompts: lower case, no links, ...
    seed: int = 0  # of the scores that are left out

    def __post_init__(self):
        if self.english:
            _lingua()


def prepare(row: Mapping, options: Options) -> dict:
    """Returns a ledger row with `caption` as it is trained on, or left out with the reason.

    It starts from `caption`, or from `text` where there is none yet. Rows that are left out
    already, and rows without any caption, come back as they are.
    """
    caption = row.get("caption") or row.get("text")
    if row.get("status") == "left out" or not caption:
        return dict(row)
    if options.drop_links and has_link(caption):
        return row | _refusal("link in caption", "the caption holds an http address.")
    if options.english and not is_english(caption):
        return row | _refusal("not English", "English is not among the five likeliest languages.")
    if options.camera:
        caption = add_camera(caption, row.get("camera"))
    if options.strip_prefix:
        caption = strip_prefix(caption)
    caption += options.append
    if options.scores:
        caption = add_scores(caption, row, row["id"], seed=options.seed)
    if options.clean:
        caption = caption_cleaning.clean(caption)
    if not caption:
        return row | _refusal("no caption", "nothing is left of the caption after cleaning.")
    return row | {"caption": caption}


def _refusal(rule: str, message: str) -> dict:
    return {"status": "left out", "rule": rule, "message": message}


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
    languages, detector = _lingua()
    likely = detector.compute_language_confidence_values(caption)[:5]
    return languages.ENGLISH in [value.language for value in likely]


@functools.cache
def _lingua():
    try:
        import lingua
    except ImportError as error:
        raise ImportError(
            f"telling languages apart needs lingua ({error}): pip install lingua-language-detector"
        ) from error
    builder = lingua.LanguageDetectorBuilder.from_all_spoken_languages()
    return lingua.Language, builder.with_low_accuracy_mode().build()
