import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from sde_onnx.errors import InputError, OutputError
from sde_onnx.files import check_writable, replacing
from sde_onnx.images import grid, save_gif, save_png, to_pil, to_uint8


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


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_its_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="below cannot be written"), replacing(tmp_path / "file" / "below"):
        pass


def test_outputs_are_checked_before_the_work(tmp_path):
    path = tmp_path / "new" / "result"
    check_writable(path, force=False)
    assert not path.parent.exists()   # nothing is made before the work is done
    path.parent.mkdir()
    path.write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        check_writable(path, force=False)
    check_writable(path, force=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path, force=True)
    with pytest.raises(OutputError, match="below cannot be written"):
        check_writable(path / "below", force=False)
