import math

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sde_onnx.errors import InputError
from sde_onnx.solvers.noise import (
    CHUNK,
    DrawnAhead,
    NumpyNoise,
    PortableNoise,
    TorchNoise,
    noise_source,
    portable_normals,
    threefry2x32,
)

WORD = st.integers(0, 2**32 - 1)
ONES = 0xFFFFFFFF


def words(*values):
    return tuple(np.array([value], np.uint32) for value in values)


@pytest.mark.parametrize(("key", "counter", "expected"), [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
])
def test_threefry_known_answers(key, counter, expected):
    """Source: the known-answer tests of Random123, Salmon et al. 2011."""
    assert [int(word[0]) for word in threefry2x32(words(*key), words(*counter))] == list(expected)


def scalar_threefry(key, counter):
    """The algorithm again, on Python integers, one word at a time."""
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    a, b = (counter[0] + key[0]) & ONES, (counter[1] + key[1]) & ONES
    for round_ in range(20):
        rotation = [13, 15, 26, 6, 17, 29, 16, 24][round_ % 8]
        a = (a + b) & ONES
        b = ((b << rotation) | (b >> (32 - rotation))) & ONES
        b ^= a
        if round_ % 4 == 3:
            group = round_ // 4 + 1
            a = (a + schedule[group % 3]) & ONES
            b = (b + schedule[(group + 1) % 3] + group) & ONES
    return a, b


@settings(deadline=None)   # a loaded machine is slow
@given(st.tuples(WORD, WORD), st.tuples(WORD, WORD))
def test_threefry_equals_the_scalar_algorithm(key, counter):
    got = threefry2x32(words(*key), words(*counter))
    assert tuple(int(word[0]) for word in got) == scalar_threefry(key, counter)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_normals_follow_the_specification(seed, draw, size):
    z = portable_normals(np.array([seed], np.uint64), draw, size)[0]
    for index, value in enumerate(z):
        a, b = scalar_threefry((seed & ONES, seed >> 32), (index // 2, draw))
        radius = math.sqrt(-2 * math.log(((a >> 8) + 1) / 2**24))
        angle = 2 * math.pi * (b >> 8) / 2**24
        expected = radius * (math.sin(angle) if index % 2 else math.cos(angle))
        # float32 against float64: near u1 = 1 the logarithm itself has few digits
        assert value == pytest.approx(expected, abs=4e-6, rel=1e-5)


def test_normals_are_normal(rng):
    z = portable_normals(rng.integers(0, 2**63, 4, dtype=np.uint64), int(rng.integers(1000)), 50_000)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-6
    assert abs(np.corrcoef(z)[np.triu_indices(4, 1)]).max() < 0.03   # seeds: 6 standard errors of 50,000 values
    assert abs(np.corrcoef(z[0, :-1], z[0, 1:])[0, 1]) < 0.03        # neighbours


@pytest.mark.parametrize("size", [3, 768, 2 * CHUNK + 6])
def test_an_image_has_the_same_noise_in_every_batch(size, rng):
    seeds = [int(seed) for seed in rng.integers(0, 2**63, 5)]
    together = PortableNoise(seeds, (1, 1, size))
    alone = [PortableNoise([seed], (1, 1, size)) for seed in seeds]
    for _ in range(3):
        np.testing.assert_array_equal(together(), np.concatenate([source() for source in alone]))


def test_draws_differ_and_start_again():
    source = PortableNoise([7], (3, 4, 4))
    first, second = source(), source()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(PortableNoise([7], (3, 4, 4))(), first)


@pytest.mark.parametrize("separate", [False, True])
def test_torch_noise_is_drawn_in_diffusers_order(separate):
    shape = (3, 3, 4, 4)

    def generators():
        made = [torch.Generator().manual_seed(seed) for seed in (range(3) if separate else [5])]
        return made if separate else made[0]

    ours, theirs = noise_source(generators(), shape), generators()
    for _ in range(3):
        np.testing.assert_array_equal(ours(), randn_tensor(shape, generator=theirs).numpy())


def test_sources_by_argument(rng):
    shape = (2, 1, 2, 2)
    assert isinstance(noise_source(None, shape), NumpyNoise)
    assert isinstance(noise_source(rng, shape), NumpyNoise)
    assert isinstance(noise_source(torch.Generator(), shape), TorchNoise)
    np.testing.assert_array_equal(noise_source(3, shape)(), PortableNoise([3, 4], (1, 2, 2))())
    np.testing.assert_array_equal(noise_source([3, 9], shape)(), PortableNoise([3, 9], (1, 2, 2))())
    assert noise_source(rng, shape)().dtype == np.float32


@pytest.mark.parametrize(("generator", "message"), [
    ("seven", "generator is str, expected"),
    ([], "generator is list, expected"),
    ([1, 2, 3], "3 seeds for 2 images"),
    ([torch.Generator()] * 3, "3 generators for 2 images"),
    (-1, "does not fit 64 bits"),
    (2**64 - 1, "does not fit 64 bits"),   # its second image would be 2^64
])
def test_other_generators_are_refused(generator, message):
    with pytest.raises(InputError, match=message):
        noise_source(generator, (2, 1, 2, 2))


@pytest.mark.parametrize(("seeds", "message"), [
    ([], "no seeds"), ([2**64], "does not fit 64 bits"), ([-1], "does not fit 64 bits"), ([0.5], "not an integer"),
    ([True], "not an integer"), (range(10**7 + 1), "more than 10,000,000 seeds"),
    (range(2**70), "more than 10,000,000 seeds"),
])
def test_bad_seeds_are_refused(seeds, message):
    with pytest.raises(InputError, match=message):
        PortableNoise(seeds, (1, 2, 2))


def test_threads_do_not_change_the_noise():
    for shape in ((3, 16, 16), (3, 250, 250)):
        alone, shared = PortableNoise(range(5), shape), PortableNoise(range(5), shape, threads=3)
        for _ in range(2):
            np.testing.assert_array_equal(alone(), shared())


def test_arrays_drawn_ahead_side_by_side_are_those_of_the_source():
    expected, source = PortableNoise([3, 5], (1, 4, 4)), PortableNoise([3, 5], (1, 4, 4), threads=3)
    np.testing.assert_array_equal(source(), expected())
    with DrawnAhead(source, arrays=8, ahead=4) as ahead:
        for _ in range(8):
            np.testing.assert_array_equal(ahead(), expected())
    assert source.draw == 9


def test_arrays_drawn_ahead_are_those_of_the_source_and_no_more():
    """And never more at a time than were asked to lie ready."""
    source = PortableNoise([3, 5], (1, 4, 4))
    expected = [PortableNoise([3, 5], (1, 4, 4))]
    wanted = [expected[0]() for _ in range(5)]
    drawn = []

    def counted():
        drawn.append(source.draw)
        return source()

    with DrawnAhead(counted, arrays=5, ahead=2) as ahead:
        for taken, z in enumerate(wanted):
            np.testing.assert_array_equal(ahead(), z)
            assert len(drawn) <= taken + 1 + 2
    assert drawn == list(range(5))
    with DrawnAhead(counted, arrays=9, ahead=3) as ahead:
        ahead()   # the rest is given up
    assert len(drawn) <= 5 + 4


def test_a_source_that_fails_fails_where_its_array_is_asked_for():
    with DrawnAhead(iter([np.ones(3)]).__next__, arrays=2, ahead=2) as ahead:
        np.testing.assert_array_equal(ahead(), np.ones(3))
        with pytest.raises(StopIteration):
            ahead()
