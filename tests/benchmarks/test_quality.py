"""Figures of a point that was measured in parts."""

import numpy as np
import pytest

from quality import mean_of, other_judges

CLASSES = np.array([0.5, 0.5])


def part(images, frechet, error, classes):
    return {"images": images, "frechet": frechet, "frechet_standard_error": error, "classes": classes,
            "class_distance": 0.7}


def test_parts_weigh_as_many_images_as_they_have():
    found = mean_of([part(3000, 0.1, 0.02, [0.6, 0.4]), part(1000, 0.3, 0.04, [0.2, 0.8])], CLASSES)
    assert found["images"] == 4000
    assert found["frechet"] == pytest.approx(0.15)
    assert found["frechet_standard_error"] == pytest.approx((0.015**2 + 0.01**2) ** 0.5)
    assert found["classes"] == pytest.approx([0.5, 0.5])
    assert found["class_distance"] == pytest.approx(0, abs=1e-12)   # of all images: the parts' own are larger


def test_one_part_is_itself():
    one = part(512, 0.2, 0.05, [0.9, 0.1])
    assert mean_of([one], CLASSES) == one | {"frechet_standard_error": pytest.approx(0.05),
                                            "class_distance": pytest.approx(0.4)}


def test_figures_of_other_judges_do_not_compare():
    """Those that an AVX-512 processor trains are others than those of AVX2."""
    assert other_judges({"rows": []}, 0.98) is None
    assert other_judges({"judge_accuracy_on_real": 0.98}, 0.98) is None
    assert other_judges({"judge_accuracy_on_real": 0.98}, 0.983) == (
        "is of judges that are right in 0.98000 of the real images, those trained here in 0.98300")
