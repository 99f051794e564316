import os
import time

import numpy as np
import pytest

from timing import Subject, compare, ratio

X, SIGMA = np.ones((1, 3, 2, 2), np.float32), np.ones(1, np.float32)


def sleeps(seconds, factor=1.0):
    def score(x, sigma):
        time.sleep(seconds)
        return factor * x
    return score


def hoards(megabytes):
    def score(x, sigma):
        assert np.ones(megabytes << 17).sum() > 0   # 8 bytes each
        return x
    return score


def breaks():
    raise ValueError("no such device\nand more")


def dies():
    os._exit(3)


def measure(*subjects, **options):
    lines = []
    results = compare(subjects, X, SIGMA, {"a case": (2 * X, SIGMA)}, reference=subjects[0].name, tell=lines.append,
                      **options)
    return results, lines


def test_a_ratio_is_what_the_subjects_take():
    results, lines = measure(Subject("slow", sleeps, (0.2,)), Subject("fast", sleeps, (0.05, 1.01)), turns=3)
    assert 3 < ratio(results, "fast", "slow") < 5
    assert len(results["fast"].seconds) == 3
    assert results["fast"].evaluations_a_turn >= 5   # a turn lasts long enough to be timed
    assert results["slow"].load_seconds < 30
    assert results["slow"].errors == {"a case": 0}
    assert results["fast"].errors["a case"] == pytest.approx(0.01, rel=1e-3)
    assert lines[0].startswith("slow: loaded in")


def test_peak_memory_is_that_of_the_evaluations():
    results, _ = measure(Subject("lean", sleeps, (0.01,)), Subject("fat", hoards, (400,)), turns=1)
    if results["lean"].peak_mb is None:
        pytest.skip("this system tells no peak memory")
    assert results["fat"].peak_mb - results["lean"].peak_mb == pytest.approx(400, abs=40)


def test_one_that_fails_says_how_and_the_others_go_on():
    results, _ = measure(Subject("good", sleeps, (0.01,)), Subject("breaks", breaks), Subject("dies", dies),
                         Subject("slow", sleeps, (60.0,), 3.0), turns=1)
    assert results["breaks"].failure == "ValueError: no such device"
    assert results["dies"].failure == "its process ended with status 3"
    assert results["slow"].failure == "no answer within 3 s"
    assert len(results["good"].seconds) == 1


def test_without_the_reference_there_is_no_comparison():
    with pytest.raises(SystemExit, match="the reference breaks failed: ValueError"):
        measure(Subject("breaks", breaks), Subject("good", sleeps, (0.01,)))
