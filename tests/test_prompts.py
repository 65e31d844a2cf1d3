import numpy as np
import pytest

from vidgen.diffusion import prompts


def test_a_strategy_that_is_none_names_its_entry_and_the_fields():
    with pytest.raises(ValueError, match="the entry '0,x'.*loop,reference,reference_start,target"):
        prompts.parse_mask_strategy("0;0,x")
    with pytest.raises(ValueError, match="up to six numbers"):
        prompts.parse_mask_strategy("0,0,0,0,1,0.5,7")


def test_braces_that_hold_no_json_are_refused():
    with pytest.raises(ValueError, match="ends in '{fast}', which is no JSON"):
        prompts.split_json("a dog {fast}")


def test_placing_a_reference_leaves_the_given_noise_as_it_was():
    noise = np.zeros((1, 3, 1, 1, 1))
    latent, edit = prompts.place_references(noise, [[np.ones((1, 1, 1, 1))]], ["0,0,0,-1"])
    assert not noise.any() and latent[0, :, 0, 0, 0].tolist() == [0, 0, 1]
    assert edit.tolist() == [[1, 1, 0]]


def test_frames_of_half_a_chunk_are_refused():
    with pytest.raises(
        ValueError, match="7 latent frames are no whole chunks: use a multiple of 5"
    ):
        prompts.pixel_frames(7)
