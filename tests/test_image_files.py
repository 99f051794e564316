import os
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sde_onnx.errors import InputError
from sde_onnx.image_files import read_images
from sde_onnx.images import save_png
from sde_onnx.operators import parse_operator

SHAPE, GRAY = (3, 6, 8), (1, 6, 8)


@pytest.fixture
def rgb(rng):
    return rng.integers(0, 256, (6, 8, 3), np.uint8)


def refused(message, path, shape=SHAPE, **how):
    with pytest.raises(InputError, match=message) as caught:
        read_images([path], shape, **how)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_are_read_as_they_are(rgb, tmp_path):
    save_png(tmp_path / "b.png", rgb)
    Image.fromarray(rgb).save(tmp_path / "a.bmp")
    save_png(tmp_path / "gray.png", rgb[:, :, :1])
    names, images = read_images([tmp_path / "b.png", tmp_path / "gray.png"], SHAPE)
    assert names == ["b", "gray"]
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], np.stack([rgb[:, :, 0]] * 3))   # gray to RGB loses nothing
    np.testing.assert_array_equal(read_images([tmp_path / "gray.png"], GRAY)[1][0, 0], rgb[:, :, 0])
    assert read_images([tmp_path], SHAPE)[0] == ["a", "b", "gray"]


def test_palettes_and_opaque_alpha_lose_nothing(rgb, tmp_path):
    few = rgb // 64 * 64
    Image.fromarray(few).quantize(64).save(tmp_path / "p.png")
    picture = Image.fromarray(np.dstack([rgb, np.full((6, 8), 255, np.uint8)]))
    picture.save(tmp_path / "opaque.png")
    _, images = read_images([tmp_path / "p.png", tmp_path / "opaque.png"], SHAPE)
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    np.testing.assert_array_equal(images[0], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], rgb.transpose(2, 0, 1))


def test_npz_hold_images_of_either_kind(rng, rgb, tmp_path):
    floats = rng.random((2, *SHAPE), np.float32)
    np.savez(tmp_path / "f.npz", images=floats, seeds=np.array([7, 123456789]))
    names, images = read_images([tmp_path / "f.npz"], SHAPE)
    assert names == ["000007", "123456789"]
    np.testing.assert_array_equal(images, floats)
    for name, array in (("first", rgb.transpose(2, 0, 1)[None]), ("last", rgb[None])):
        np.savez(tmp_path / f"{name}.npz", images=array)
        names, images = read_images([tmp_path / f"{name}.npz"], SHAPE)
        assert names == [f"{name}-000000"]
        np.testing.assert_array_equal(images[0], rgb.transpose(2, 0, 1))
    with pytest.raises(InputError, match="do not go together"):
        read_images([tmp_path], SHAPE)


def test_a_folder_of_samples_is_read_without_what_is_unfinished(rgb, tmp_path):
    save_png(tmp_path / "000001.png", rgb)
    save_png(tmp_path / ".000002.png", rgb)
    (tmp_path / "run.json").write_text("{}")
    assert read_images([tmp_path], SHAPE)[0] == ["000001"]


def test_what_is_no_picture_in_a_folder_is_left_out(rgb, tmp_path):
    """Pillow writes PDF and does not read it."""
    save_png(tmp_path / "b.png", rgb)
    for name in ("paper.pdf", "notes.txt"):
        (tmp_path / name).write_text("words")
    assert read_images([tmp_path], SHAPE)[0] == ["b"]


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_read_without_a_word(rgb, tmp_path, monkeypatch):
    """Pillow warns from some size on, and refuses from twice that size on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    save_png(tmp_path / "a.png", rgb)
    assert read_images([tmp_path / "a.png"], SHAPE)[0] == ["a"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused("cannot be read as a picture: .*could be decompression bomb", tmp_path / "a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="a script")
def test_a_program_in_a_pictures_place_is_not_run(rgb, tmp_path, monkeypatch):
    """EPS is PostScript, which Pillow has Ghostscript run."""
    Image.fromarray(rgb).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\nexit 0\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(InputError, match=r"a.png cannot be read as a picture: cannot identify image file '.*a.png'"):
        read_images([tmp_path / "a.png"], SHAPE)
    for operator in (f"mask:{tmp_path / 'a.png'}", f"kernel:{tmp_path / 'a.png'}"):
        with pytest.raises(InputError, match="cannot be read as a picture"):
            parse_operator(operator)
    program = (tmp_path / "a.png").read_bytes()
    sizes = {(3, 20): 16, (3, 30): 16}   # of an IPTC file, whose picture is what it holds
    fields = {(3, 60): b"\1\0", (3, 65): b"\1", **{tag: size.to_bytes(2) for tag, size in sizes.items()},
              (3, 120): b"\5", (8, 10): program}
    (tmp_path / "i.png").write_bytes(b"".join(b"\x1c" + bytes(tag) + len(value).to_bytes(2) + value
                                             for tag, value in fields.items()))
    with pytest.raises(InputError, match="cannot identify image file"):
        read_images([tmp_path / "i.png"], SHAPE)
    (tmp_path / "i.png").unlink()
    assert not (tmp_path / "ran").exists()
    shutil.copyfile(tmp_path / "a.png", tmp_path / "b.eps")
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="holds no pictures"):
        read_images([tmp_path], SHAPE)


def test_resizing_crops_the_middle(rgb, tmp_path):
    wide = np.zeros((12, 40, 3), np.uint8)
    wide[:, 12:28] = rgb.repeat(2, 0).repeat(2, 1)   # the middle, of the model's aspect
    save_png(tmp_path / "wide.png", wide)
    refused("is 40x12, the model's images are 8x6: --resize", tmp_path / "wide.png")
    _, images = read_images([tmp_path / "wide.png"], SHAPE, resize=True)
    expected = Image.fromarray(wide).resize((8, 6), Image.Resampling.LANCZOS, box=(12, 0, 28, 12))
    np.testing.assert_array_equal(images[0], np.asarray(expected).transpose(2, 0, 1))
    np.savez(tmp_path / "wide.npz", images=wide[None])
    np.testing.assert_array_equal(read_images([tmp_path / "wide.npz"], SHAPE, resize=True)[1], images)


def test_alpha_is_put_on_white(rgb, tmp_path):
    alpha = np.full((6, 8, 1), 255, np.uint8)
    alpha[2:4] = 0
    save_png(tmp_path / "a.png", np.dstack([rgb, alpha]))
    refused("is transparent in places.*--resize", tmp_path / "a.png")
    _, images = read_images([tmp_path / "a.png"], SHAPE, resize=True)
    np.testing.assert_array_equal(images[0], np.where(alpha == 0, 255, rgb).transpose(2, 0, 1))
    gray = np.dstack([rgb[:, :, :1], alpha])
    save_png(tmp_path / "g.png", gray)
    refused("is transparent in places.*--resize", tmp_path / "g.png", GRAY)
    _, images = read_images([tmp_path / "g.png"], GRAY, resize=True)
    np.testing.assert_array_equal(images[0, 0], np.where(alpha == 0, 255, rgb)[:, :, 0])


def test_what_is_no_picture_of_the_model_is_refused(rng, rgb, tmp_path):
    refused("is missing", tmp_path / "none.png")
    refused("is missing", tmp_path / ("n" * 300 + ".png"))
    (tmp_path / "empty").mkdir()
    refused("holds no pictures", tmp_path / "empty")
    (tmp_path / "text.png").write_text("no picture")
    refused("cannot be read as a picture", tmp_path / "text.png")
    save_png(tmp_path / "rgb.png", rgb)
    (tmp_path / "half.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:80])
    refused("cannot be read as a picture", tmp_path / "half.png")
    refused("is RGB, the model's images are gray", tmp_path / "rgb.png", GRAY, resize=True)
    Image.fromarray(rng.integers(0, 65536, (6, 8), np.uint16)).save(tmp_path / "deep.png")
    refused("has 16 bits a value, expected 8-bit", tmp_path / "deep.png")
    Image.fromarray(rng.random((6, 8), np.float32)).save(tmp_path / "floats.tiff")
    refused("mode F, expected 8-bit", tmp_path / "floats.tiff")
    header, rows = struct.pack(">2I5B", 8, 6, 16, 2, 0, 0, 0), b"".join(b"\0" + rng.bytes(8 * 3 * 2) for _ in range(6))
    (tmp_path / "deeper.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))))
    refused("has 16 bits a value, expected 8-bit", tmp_path / "deeper.png")
    (tmp_path / "deep.ppm").write_bytes(b"P6 8 6 65535\n" + rng.bytes(6 * 8 * 3 * 2))
    refused("has 16 bits a value, expected 8-bit", tmp_path / "deep.ppm")
    frames = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    refused("holds 3 frames", tmp_path / "film.gif")
    with pytest.raises(InputError, match="no pictures: give files or folders"):
        read_images([], SHAPE)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"other": np.zeros(3)}, "cannot be read as a .npz with an array `images`: it holds no array `images`"),
    ({"images": np.zeros((0, *SHAPE), np.uint8)}, r"uint8 \[0, 3, 6, 8\], expected images"),
    ({"images": np.zeros((1, *SHAPE))}, "holds float64"),
    ({"images": np.full((1, *SHAPE), 2, np.float32)}, r"values outside \[0, 1\]"),
    ({"images": np.full((1, *SHAPE), np.nan, np.float32)}, r"values outside \[0, 1\]"),
    ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "only 8-bit pictures are resized"),
    ({"images": np.zeros((1, 9, 9, 9), np.uint8)}, r"images \[9, 9, 9\], the model's images are \[3, 6, 8\]"),
    ({"images": np.array([{}, 3])}, "cannot be read"),
])
def test_a_npz_of_something_else_is_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(message, tmp_path / "x.npz", resize=True)
