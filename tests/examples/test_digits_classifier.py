"""The bundled classifier of noisy digits: what it takes and gives, its gradient, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import sde_onnx

import data
import train_classifier

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
RESULTS = json.loads((FOLDER / "classifier.json").read_text(encoding="utf-8"))
DRAWS = 4   # of colours and noise for each digit


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(sde_onnx.bundled_classifier(), providers=["CPUExecutionProvider"])


def noisy_digits(rng, sigma, *, draws=1):
    """Unseen digits in fresh colours and noise, ``[N, C, H, W]``, sigma of each, and what they say."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    ink, labels = data.load_ink(16, held_out=True)
    images = data.colour(ink.repeat(draws, 1, 1, 1), generator).numpy()
    level = np.full(len(images), sigma, np.float32)
    x = images + np.float32(sigma) * rng.standard_normal(images.shape, np.float32)
    return x, level, labels.repeat(draws).numpy()


def logits(session, x, sigma):
    found, = session.run(["logits"], {"x": x, "sigma": sigma, "v": np.zeros((len(x), 10), np.float32)})
    return found


def test_what_it_takes_and_gives(session):
    batch = session.get_inputs()[0].shape[0]
    assert isinstance(batch, str)   # free
    for items, expected in (
        (session.get_inputs(), {"x": [batch, 3, 16, 16], "sigma": [batch], "v": [batch, 10]}),
        (session.get_outputs(), {"logits": [batch, 10], "vjp": [batch, 3, 16, 16]}),
    ):
        assert {item.name: item.shape for item in items} == expected
        assert {item.type for item in items} == {"tensor(float)"}
    assert sde_onnx.bundled_classifier().stat().st_size < 1_500_000


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_its_gradient_is_that_of_central_differences(session, rng, sigma):
    x, level, _ = (values[:1] for values in noisy_digits(rng, sigma))
    v = rng.standard_normal((1, 10), np.float32)
    _, gradient = session.run(["logits", "vjp"], {"x": x, "sigma": level, "v": v})
    # Along the gradient, which its length depends on, and along directions that have nothing to do with it.
    directions = rng.standard_normal((32, *x.shape[1:]), np.float32)
    directions[0] = gradient[0]
    directions /= np.linalg.norm(directions.reshape(32, -1), axis=1)[:, None, None, None]
    h = np.float32(0.02 * (sigma**2 + 0.35**2) ** 0.5)   # of the scaled input, 0.02
    ahead, behind = (logits(session, x + step * directions, level.repeat(32)).astype(np.float64) for step in (h, -h))
    slopes = (ahead - behind) @ v[0] / (2 * h)
    expected = directions.reshape(32, -1) @ gradient.reshape(-1)
    assert slopes[0] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    assert np.linalg.norm(slopes[1:] - expected[1:]) < 1e-2 * np.linalg.norm(expected[1:])


def test_images_of_a_batch_do_not_depend_on_each_other(session, rng):
    x, _, _ = (values[:3] for values in noisy_digits(rng, 0.3))
    inputs = {"x": x, "sigma": np.array([0.02, 0.7, 9.0], np.float32), "v": rng.standard_normal((3, 10), np.float32)}
    together = session.run(["logits", "vjp"], inputs)
    for index in range(3):
        alone = session.run(["logits", "vjp"], {name: value[[index]] for name, value in inputs.items()})
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[[index]], b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("row", [row for row in RESULTS["rows"] if row["sigma"] in (0.1, 1.0)],
                         ids=lambda row: f"sigma {row['sigma']}")
def test_it_knows_unseen_digits_as_often_as_is_said(session, rng, row):
    x, level, labels = noisy_digits(rng, row["sigma"], draws=DRAWS)
    accuracy = (logits(session, x, level).argmax(axis=1) == labels).mean()
    claimed = row["unseen"]["accuracy"]
    # Draws alone differ, not the digits: at most as much as draws of new digits would, here and in the claim.
    error = (claimed * (1 - claimed) * (1 / len(x) + DRAWS / len(x) / train_classifier.DRAWS)) ** 0.5
    print(f"accuracy {accuracy:.4f}, claimed {claimed:.4f}, error {error:.4f}")
    assert accuracy == pytest.approx(claimed, abs=4 * error)


def test_it_knows_nearly_all_unseen_digits_that_are_hardly_noisy():
    for row in RESULTS["rows"]:
        if row["sigma"] <= 0.1:
            assert row["unseen"]["accuracy"] >= 0.97


def test_the_table_is_what_was_measured():
    assert [row["sigma"] for row in RESULTS["rows"]] == list(train_classifier.SIGMAS)
    assert train_classifier.table(RESULTS["rows"]) in (FOLDER / "README.md").read_text(encoding="utf-8")
