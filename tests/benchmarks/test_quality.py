"""Figures of a point that was measured in parts, and the judges that they are of."""

import json

import numpy as np
import pytest

from sde_onnx.files import sha256

from data import FASHION
from environment import RESULTS
from fidelity import real_digits
from judge import kept_judges, weights_of
from quality import by_other_judges, mean_of

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
    assert not by_other_judges({"rows": []}, "ab12")
    assert not by_other_judges({"rows": [{}], "judge_weights": "ab12"}, "ab12")
    assert by_other_judges({"rows": [{}], "judge_weights": "cd34"}, "ab12")
    assert by_other_judges({"rows": [{}]}, "ab12")   # of before their weights were kept


@pytest.mark.parametrize("name", ["quality.json", "quality_fashion.json"])
def test_a_committed_result_names_the_judges_that_are_kept(name):
    result = json.loads((RESULTS / name).read_text())
    assert result["judge_weights"] == sha256(weights_of(result["data"]))


@pytest.mark.parametrize(("name", "data"), [
    ("quality.json", "digits"),
    pytest.param("quality_fashion.json", "fashion", marks=pytest.mark.skipif(
        not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")),
])
def test_the_kept_judges_are_right_as_often_as_a_committed_result_says(name, data):
    committed = json.loads((RESULTS / name).read_text())
    pixels, labels = real_digits(committed["compared_with"], held_out=False, data=data)
    right = [(judge.look(pixels)[1].argmax(axis=1) == labels).mean() for judge in kept_judges(data)]
    rounding = 4 / (len(right) * len(labels))   # so many images may lie that near to another class
    assert np.mean(right) == pytest.approx(committed["judge_accuracy_on_real"], abs=rounding)
