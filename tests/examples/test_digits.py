"""The bundled model draws digits, all ten of them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import sde_onnx
from sde_onnx.export import from_diffusers

import data
import train
from training import learning_rate


def strokes(images):
    """The ink of coloured digits, ``[N, C, H, W] -> [N, H * W]`` in [0, 1], whatever their two colours are."""
    pixels = images.reshape(*images.shape[:2], -1).transpose(0, 2, 1)
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    axis = np.linalg.svd(centred, full_matrices=False)[2][:, 0]
    ink = np.einsum("npc,nc->np", centred, axis)
    border = np.zeros(images.shape[2:], bool)
    border[:, :2] = border[:, -2:] = True   # hardly ever inked
    ink *= np.where(ink[:, border.ravel()].mean(axis=1) > ink.mean(axis=1), -1, 1)[:, None]
    low, high = ink.min(axis=1, keepdims=True), ink.max(axis=1, keepdims=True)
    return (ink - low) / (high - low)


@pytest.mark.slow
def test_the_samples_are_recognisable_digits_all_ten_of_them():
    generator = torch.Generator().manual_seed(0)
    ink, labels = data.load_ink(16, held_out=False)
    unseen, unseen_labels = data.load_ink(16, held_out=True)
    classifier = LogisticRegression(max_iter=2000).fit(strokes(data.colour(ink, generator).numpy()), labels)
    real = classifier.predict_proba(strokes(data.colour(unseen, generator).numpy()))
    assert (real.argmax(axis=1) == unseen_labels.numpy()).mean() > 0.93   # the classifier is worth asking

    samples = sde_onnx.sample(sde_onnx.load(sde_onnx.bundled_model()), seeds=range(64), steps=200)
    made = classifier.predict_proba(strokes(samples))
    counts = np.bincount(made.argmax(axis=1), minlength=10)
    sure, really_sure = ((p.max(axis=1) > 0.9).mean() for p in (made, real))
    print(f"digits 0 to 9 among 64 samples: {counts.tolist()}; recognised with p > 0.9: {sure:.2f}, real digits "
          f"{really_sure:.2f}")
    assert (counts > 0).all()
    assert sure > really_sure - 0.2   # three standard errors of 64 samples


def test_a_training_goes_on_where_it_was(tmp_path, monkeypatch):
    """And its checkpoint is one that diffusers and the exporter read; a stopped training ends in the same weights."""
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setattr(train, "BATCH", 8)
    monkeypatch.setattr(train, "UNSEEN", 8)
    whole = train.train(tmp_path / "whole", 2, "digits")
    monkeypatch.setattr(train, "learning_rate", lambda peak, iteration, iterations, warm_up: (
        learning_rate(peak, iteration, 2, warm_up=warm_up)))   # as in the run of two
    train.train(tmp_path / "stopped", 1, "digits")
    resumed = train.train(tmp_path / "stopped", 2, "digits")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
    train.save_checkpoint(whole, tmp_path / "checkpoint")
    assert from_diffusers(str(tmp_path / "checkpoint")).schedule.sigma_max == train.SIGMA_MAX
