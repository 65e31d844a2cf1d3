"""Every number of the reference, from a folder of golden cases.

    pytest tests/test_golden.py [--golden DIR]

runs all cases of the folder (by default those of the project), fails on a kind of case or a tensor
that no check knows, and ends with the largest error of each case as a share of its tolerance.
"""

import golden_data
import golden_flow
import golden_stdit
import golden_utils
import golden_vae
import numpy as np
import pytest

CHECKS = {
    "buckets": golden_data.check_buckets,
    "full_size_manifest": golden_data.check_full_size,
    "lr_schedules": golden_data.check_lr_schedules,
    "masks": golden_data.check_masks,
    "prompt_helpers": golden_data.check_prompt_helpers,
    "resize_crop": golden_data.check_resize_crop,
    "rflow": golden_flow.check_flow,
    "stdit3_parts": golden_stdit.check_parts,
    "stdit3_tiny": golden_stdit.check_model,
    "t5_encoder_tiny": golden_vae.check_t5,
    "text_preprocessing": golden_data.check_text_preprocessing,
    "train_steps": golden_flow.check_train_steps,
    "vae_pipeline_tiny": golden_vae.check_pipeline,
    "vae_spatial_tiny": golden_vae.check_spatial,
    "vae_temporal_tiny": golden_vae.check_temporal,
}


def test_case_equals_the_reference(golden_folder, record_property):
    case = golden_utils.open_case(golden_folder)
    assert case.kind in CHECKS, f"{golden_folder} is of the unknown kind {case.kind!r}"
    assert case.spec["format"] == 1
    CHECKS[case.kind](case)
    case.check_complete()
    record_property(f"golden {case.name}", case.worst)


def test_a_tensor_that_no_check_knows_fails_its_case():
    case = golden_utils.load_case("lr_schedules")
    case.tensors["output/new/x"] = np.zeros(1)
    golden_data.check_lr_schedules(case)
    with pytest.raises(AssertionError, match="holds what no check knows: .'output/new/x'"):
        case.check_complete()


def test_a_number_off_by_more_than_its_tolerance_fails():
    case = golden_utils.load_case("resize_crop")
    case.tensors["output/up/video"][0, 0, 3, 3] += 0.01
    with pytest.raises(AssertionError, match="up/video: the error is"):
        golden_data.check_resize_crop(case)
