"""Captions on their way to training: what is added, what is taken away, always in one order."""

import sys

import numpy as np
import pytest

from data_pipelines.stages import text

ROW = {"id": "a", "text": "A dog runs.", "aesthetic": 5.46, "motion": 10.04, "camera": "pan_left"}


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("The video shows a dog.", "A dog."),
        ("the image portrays a dog.", "A dog."),
        ("In the video, a dog runs.", "A dog runs."),
        ("The video is about a dog.", "About a dog."),
        ("The video issues a warning.", "The video issues a warning."),
        ("A dog. The video shows a cat.", "A dog. The video shows a cat."),
        ("The video shows", "The video shows"),
    ],
)
def test_a_language_models_way_to_begin_is_taken_off(given, wanted):
    assert text.strip_prefix(given) == wanted


def test_scores_are_told_in_most_captions_and_the_same_way_each_time():
    texts = [text.add_scores("a dog", ROW, str(i)) for i in range(1000)]
    assert "a dog [aesthetic score: 5.5, motion score: 10.0]" in texts
    for words in ("aesthetic score: 5.5", "motion score: 10.0"):
        share = np.mean([words in caption for caption in texts])
        assert abs(share - text.SCORE_SHARE) < 0.05  # four standard deviations
    assert texts.count("a dog") == pytest.approx(40, abs=25)
    assert texts == [text.add_scores("a dog", ROW, str(i)) for i in range(1000)]
    assert texts != [text.add_scores("a dog", ROW, str(i), seed=1) for i in range(1000)]
    assert text.add_scores("a dog", {"aesthetic": None}, "a") == "a dog"


def test_the_steps_come_in_one_order_and_each_can_be_left_out():
    options = text.Options(camera=True, append=" 4k.", scores=True)
    ids = map(str, range(50))
    both = next(i for i in ids if text.add_scores("", ROW, i).count("score") == 2)
    row = text.prepare(ROW | {"id": both}, options)
    told = " [aesthetic score: 5.5, motion score: 10.0]"
    assert row["caption"] == "A dog runs. Camera motion: pan left. 4k." + told
    row = text.prepare(ROW | {"id": both}, text.Options(scores=True, clean=True))
    assert row["caption"] == "a dog runs. aesthetic score: 5.5, motion score: 10.0"
    assert text.prepare(ROW, text.Options()) == ROW | {"caption": ROW["text"]}
    assert text.prepare(ROW | {"caption": "A cat."}, text.Options())["caption"] == "A cat."
    assert text.add_camera("A dog.", "unknown") == "A dog."


def test_captions_of_web_pages_and_empty_ones_leave_the_clip_out():
    row = text.prepare(ROW | {"text": "see https://a.com/x"}, text.Options(drop_links=True))
    assert (row["status"], row["rule"]) == ("left out", "link in caption")
    row = text.prepare(ROW | {"text": "https://a.com/x"}, text.Options(clean=True))
    assert (row["status"], row["rule"]) == ("left out", "no caption")
    gone = {"id": "a", "text": "x", "status": "left out", "rule": "damaged"}
    assert text.prepare(gone, text.Options(clean=True)) == gone


def test_one_line_has_no_control_characters_and_ends_at_a_word():
    assert text.one_line("a\x00b\n\n c\ud800 ", 100) == "a b c"
    assert text.one_line("one two three", 9) == "one two"
    assert text.one_line("one two", 7) == "one two"
    assert text.one_line("x" * 50, 9) == "x" * 9


def test_the_language_filter_says_what_it_needs(monkeypatch):
    text._lingua.cache_clear()
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ImportError, match="pip install lingua-language-detector"):
        text.Options(english=True)
