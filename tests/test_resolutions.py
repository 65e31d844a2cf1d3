import pytest

from data_pipelines.loading import resolutions


@pytest.mark.parametrize("resolution", ["16", "32", "64", "96", "128"])
def test_toy_sizes_are_multiples_of_8_of_nearly_their_aspect(resolution):
    assert resolutions.sizes(resolution)["1.00"] == (int(resolution),) * 2
    for aspect, (height, width) in resolutions.sizes(resolution).items():
        assert height % 8 == width % 8 == 0
        assert f"{height / width:.2f}" == aspect
    assert resolutions.sizes("32")["0.60"] == (24, 40)


def test_a_wrong_ratio_lists_the_right_ones():
    with pytest.raises(ValueError, match="16:9"):
        resolutions.image_size("240p", "7:5")
