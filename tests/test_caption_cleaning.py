import pytest

from data_pipelines.stages import caption_cleaning

# spec B.9: measured on the original
CLEANED = {
    "A stylish woman walking in the street of Tokyo. aesthetic score: 6.5.": (
        "a stylish woman walking in the street of tokyo. aesthetic score: 6.5."
    ),
    "Caption [aesthetic score: 5.5, motion score: 10.0]": (
        "caption aesthetic score: 5.5, motion score: 10.0"
    ),
    "Hello+World%20 (test) a/b <person> 16:9 1920x1080 see https://a.com/x @bob #123 don't — "
    "“quoted” e.g. 3.5m": 'hello world test a b person 16:9 see don\'t - "quoted" e. g. 3.5m',
    "A dog.It runs,fast": "a runs, fast",
    "4k video of 2 dogs, a-b-c-d-e": "4k video of 2 dogs, a b c d e",
    "ends with dash -": "ends with dash",
    "an epsilon <script>x = 1</script>": "an ilon",
}


@pytest.mark.parametrize("text", CLEANED)
def test_cleaning_gives_what_the_original_gave(text):
    assert caption_cleaning.clean(text) == CLEANED[text]
