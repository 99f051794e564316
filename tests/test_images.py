import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from sde_onnx.errors import InputError, OutputError
from sde_onnx.images import grid, load_png, panel, save_gif, save_png, to_pil, to_uint8


def test_eight_bits_round_as_diffusers_does(rng):
    images = rng.random((2, 3, 8, 8), np.float32)
    images[0, 0, 0, :4] = [-0.5, 1.5, 0.5 / 255, 1.5 / 255]   # clipped, and exact halves
    expected = DiffusionPipeline.numpy_to_pil(images.clip(0, 1).transpose(0, 2, 3, 1))
    for got, picture in zip(to_uint8(images), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(to_pil(got)), np.asarray(picture))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_holds_the_pixels(channels, rng, tmp_path):
    picture = rng.integers(0, 256, (5, 7, channels), np.uint8)
    save_png(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png")).reshape(picture.shape), picture)


def test_only_a_png_is_read_as_one_of_ours(tmp_path):
    to_pil(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png", format="GIF")
    with pytest.raises(OutputError, match="0.png cannot be read as PNG .*: move or remove it"):
        load_png(tmp_path / "0.png")


def test_a_grid_holds_each_picture_in_its_place(rng):
    pictures = rng.integers(1, 256, (5, 4, 6, 3), np.uint8)
    sheet = grid(pictures, zoom=2)
    assert sheet.shape == (2 * 4 * 2, 3 * 6 * 2, 3)
    for index, picture in enumerate(pictures):
        top, left = index // 3 * 8, index % 3 * 12
        np.testing.assert_array_equal(sheet[top : top + 8 : 2, left : left + 12 : 2], picture)
    assert (sheet[8:, 24:] == 0).all()
    assert grid(pictures, columns=5).shape == (4, 30, 3)
    with pytest.raises(InputError, match="zoom is 0"):
        grid(pictures, zoom=0)


def test_gif_has_all_frames(rng, tmp_path):
    frames = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(5)]
    save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5
        durations = []
        for index in range(5):
            film.seek(index)
            durations.append(film.info["duration"])
    assert durations == [80, 80, 80, 80, 1500]


def test_a_panel_shows_a_small_measurement_by_whole_pixels(rng):
    samples = rng.integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    measurement = rng.integers(0, 256, (2, 6, 1), dtype=np.uint8)   # enlarged four times one way, twice the other
    clean = samples[0]
    shown, white = panel(measurement, samples, clean=clean)
    assert len(shown) == 1 + 3 + 2 + 1
    np.testing.assert_array_equal(shown[0], np.kron(measurement, np.ones((4, 2, 3), np.uint8)))
    np.testing.assert_array_equal(shown[1:4], samples)
    assert np.abs(shown[4] - samples.mean(axis=0)).max() <= 0.5
    deviation = samples.std(axis=0).mean(axis=2)
    assert white == pytest.approx(deviation.max() / 255)
    assert np.abs(shown[5] - 255 * deviation[..., None] / deviation.max()).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(shown[6], clean)
