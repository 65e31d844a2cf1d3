"""Captions on their way to training: what is added, what is taken away."""

import sys

import numpy as np
import pytest

from data_pipelines.stages import text

ROW = {"id": "a", "aesthetic": 5.46, "motion": 10.04, "match": 30.0}


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


def test_the_camera_is_told_in_words_unless_it_is_unknown():
    assert text.add_camera("A dog runs.", "pan_left") == "A dog runs. Camera motion: pan left."
    assert text.add_camera("A dog.", "unknown") == text.add_camera("A dog.", None) == "A dog."


def test_links_are_addresses_and_not_every_word_with_a_dot():
    assert text.has_link("see https://a.com/x") and text.has_link("(http://b)")
    assert not text.has_link("A dog.It runs at http speed: //")


def test_one_line_has_no_control_characters_and_ends_at_a_word():
    assert text.one_line("a\x00b\n\n c\ud800 ", 100) == "a b c"
    assert text.one_line("one two three", 9) == "one two"
    assert text.one_line("one two", 7) == "one two"
    assert text.one_line("x" * 50, 9) == "x" * 9


def test_the_language_filter_says_what_it_needs(monkeypatch):
    text._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ImportError, match="pip install lingua-language-detector"):
        text.is_english("a dog")
