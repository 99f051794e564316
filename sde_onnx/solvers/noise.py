"""Gaussian noise that belongs to an image: the same in every batch, on every device, in every language.

Threefry-2x32 with 20 rounds turns a key (the image's seed) and a counter (block ``j``, number ``draw`` of the array)
into two words ``(a, b)``, and Box-Muller turns those into two normals:

    u1 = ((a >> 8) + 1) 2^-24   in (0, 1],      u2 = (b >> 8) 2^-24   in [0, 1)
    z[2j] = sqrt(-2 ln u1) cos(2 pi u2),        z[2j + 1] = sqrt(-2 ln u1) sin(2 pi u2)

in C order over ``[C, H, W]``. ``draw`` 0 is the initial latent.

Other sources are a ``numpy.random.Generator`` and a ``torch.Generator`` (or one for each image), the latter drawn in
diffusers' order. A source is called without arguments and returns the next array, ``[N, C, H, W]`` float32.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller 1958.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import MOST_SEEDS, checked_each, checked_sequence
from sde_onnx.errors import InputError, one_line
from sde_onnx.solvers.protocols import Array, NoiseSource

__all__ = ["DrawnAhead", "LatentFirst", "NumpyNoise", "PortableNoise", "TorchNoise", "noise_source", "portable_normals",
           "portable_uniforms", "threefry2x32"]

Float32Array = NDArray[np.float32]
Uint32Array = NDArray[np.uint32]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
KEY_PARITY = np.uint32(0x1BD11BDA)
CHUNK = 1 << 18   # blocks worked on at a time: fewer, and threads wait for each other's turns; more, and for memory


def threefry2x32(key: tuple[Uint32Array, Uint32Array], counter: tuple[Uint32Array, Uint32Array]
                 ) -> tuple[Uint32Array, Uint32Array]:
    """Threefry-2x32 with 20 rounds, elementwise over arrays that broadcast together.

    Args:
        key: two words, uint32.
        counter: two words, uint32.

    Returns:
        Two words, uint32.

    Source: Salmon et al. 2011; the rotations are those of their Random123 library.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ KEY_PARITY)
    shape = np.broadcast_shapes(*(word.shape for word in (*key, *counter)))
    a = np.empty(shape, np.uint32)
    b = np.empty(shape, np.uint32)
    low_bits = np.empty(shape, np.uint32)
    np.add(counter[0], schedule[0], out=a)
    np.add(counter[1], schedule[1], out=b)
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            np.add(a, b, out=a)
            np.right_shift(b, np.uint32(32 - rotation), out=low_bits)
            np.left_shift(b, np.uint32(rotation), out=b)
            np.bitwise_or(b, low_bits, out=b)
            np.bitwise_xor(b, a, out=b)
        np.add(a, schedule[(group + 1) % 3], out=a)
        np.add(b, schedule[(group + 2) % 3] + np.uint32(group + 1), out=b)
    return a, b


def portable_normals(
    seeds: NDArray[np.uint64], draw: int, size: int, *, pool: ThreadPoolExecutor | None = None
) -> Float32Array:
    """Normals of each seed for one draw.

    Args:
        seeds: one for each image, ``[N]`` uint64.
        draw: number of the array among those that the image has asked for, 0 is the initial latent.
        size: values an image, C*H*W.
        pool: threads that share the work; numpy lets them run side by side.

    Returns:
        ``[N, size]`` float32.
    """
    blocks = (size + 1) // 2
    keys = _keys(seeds)
    z = np.empty((len(seeds), blocks, 2), np.float32)
    draw_word = np.array([[draw]], np.uint32)

    def fill(tile: tuple[slice, slice]) -> None:
        images, columns = tile
        index = np.arange(columns.start, columns.stop, dtype=np.uint32)[None]
        a, b = threefry2x32((keys[0][images], keys[1][images]), (index, draw_word))
        radius = ((a >> np.uint32(8)) + np.uint32(1)).astype(np.float32)
        radius *= np.float32(2**-24)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle = (b >> np.uint32(8)).astype(np.float32)
        angle *= np.float32(2 * np.pi * 2**-24)
        np.multiply(radius, np.cos(angle), out=z[images, columns, 0])
        np.multiply(radius, np.sin(angle), out=z[images, columns, 1])

    for _ in (map if pool is None else pool.map)(fill, _tiles(len(seeds), blocks)):
        pass
    return z.reshape(len(seeds), 2 * blocks)[:, :size]


def portable_uniforms(seeds: NDArray[np.uint64], draw: int, size: int) -> Float32Array:
    """Uniform numbers in [0, 1) of each seed for one draw: ``(a >> 8) 2^-24``, ``(b >> 8) 2^-24`` of block after block.

    Args:
        seeds, draw, size: see :func:`portable_normals`.

    Returns:
        ``[N, size]`` float32.
    """
    index = np.arange((size + 1) // 2, dtype=np.uint32)[None]
    words = threefry2x32(_keys(seeds), (index, np.array([[draw]], np.uint32)))
    return (np.stack(words, 2).reshape(len(seeds), -1)[:, :size] >> np.uint32(8)) * np.float32(2**-24)


def _keys(seeds: NDArray[np.uint64]) -> tuple[Uint32Array, Uint32Array]:
    low, high = seeds & np.uint64(0xFFFFFFFF), seeds >> np.uint64(32)
    return low.astype(np.uint32)[:, None], high.astype(np.uint32)[:, None]


def _tiles(images: int, blocks: int) -> Iterator[tuple[slice, slice]]:
    """Cuts ``[images, blocks]`` into rectangles of about CHUNK."""
    rows, columns = max(1, CHUNK // blocks), min(blocks, CHUNK)
    for row in range(0, images, rows):
        for column in range(0, blocks, columns):
            yield slice(row, min(row + rows, images)), slice(column, min(column + columns, blocks))


class PortableNoise:
    """The portable noise of this module: a function of each image's seed and of how many arrays were drawn.

    Args:
        seeds: one for each image, 0 to 2^64 - 1.
        shape: an image's ``(C, H, W)``.
        threads: that draw. The noise does not depend on them; where a GPU does the rest, they are free.

    Raises:
        InputError: no seed, or one that is not an integer of 64 bits.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], *, threads: int = 1) -> None:
        self.seeds = check_seeds(seeds)
        self.shape = shape
        self.threads = threads
        self.draw = 0
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self) -> Float32Array:
        return self._next(self._pool)()

    def later(self) -> Callable[[], Float32Array]:
        """The next array as a function that draws it, in whichever thread, beside those of other arrays."""
        return self._next(None)

    def _next(self, pool: ThreadPoolExecutor | None) -> Callable[[], Float32Array]:
        draw, self.draw = self.draw, self.draw + 1
        size = int(np.prod(self.shape))
        return lambda: portable_normals(self.seeds, draw, size, pool=pool).reshape(len(self.seeds), *self.shape)


class NumpyNoise:
    """Noise from a numpy generator, one draw for the whole batch ``shape`` = ``(N, C, H, W)``."""

    def __init__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.generator = generator
        self.shape = shape

    def __call__(self) -> Float32Array:
        return self.generator.standard_normal(self.shape, np.float32)


class LatentFirst:
    """A noise source whose first array is one that is given; those after it are another source's, which counts it.

    Every loop starts from sigma_max times the first array. So whoever gives ``latent / sigma_max`` starts them all
    from the latent.
    """

    def __init__(self, first: Float32Array, following: NoiseSource) -> None:
        self._first: Float32Array | None = first
        self._following = following

    def __call__(self) -> Array:
        z, (first, self._first) = self._following(), (self._first, None)
        return z if first is None else first


class DrawnAhead:
    """Another source's arrays, drawn on other threads before they are asked for: a context, and a source in it.

    Args:
        noise: the source. It is asked for as many arrays as this one will be, so that its state is what it would be. Of
            one that can draw them side by side (:meth:`PortableNoise.later`) several are drawn at a time.
        arrays: that will be asked for.
        ahead: of them, at most so many are held at a time.
    """

    def __init__(self, noise: NoiseSource, arrays: int, ahead: int) -> None:
        self._later: Callable[[], Callable[[], Array]] = getattr(noise, "later", lambda: noise)
        self._left = arrays
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(getattr(noise, "threads", 1))
        self._drawn: collections.deque[Future[Array]] = collections.deque()

    def __enter__(self) -> DrawnAhead:
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __call__(self) -> Array:
        z = self._drawn.popleft().result()
        self._draw()
        return z

    def _draw(self) -> None:
        while self._left and len(self._drawn) < self._ahead:
            self._left -= 1
            self._drawn.append(self._threads.submit(self._later()))


class TorchNoise:
    """Noise from ``torch.Generator``s exactly as diffusers draws it.

    Args:
        generators: one for the batch, or one for each image.
        shape: ``(N, C, H, W)``.

    Raises:
        InputError: neither one generator nor one for each image.
    """

    def __init__(self, generators: Sequence[Any], shape: tuple[int, ...]) -> None:
        checked_each(generators, "generator", shape[0], or_one=True)
        self.generators = generators
        self.shape = shape
        self.torch: Any = sys.modules["torch"]   # whoever made the generator has imported it; the runtime never does

    def __call__(self) -> Float32Array:
        share = (self.shape[0] // len(self.generators), *self.shape[1:])
        parts = [
            self.torch.randn(share, generator=generator, device=generator.device, dtype=self.torch.float32)
            for generator in self.generators
        ]
        return np.concatenate([part.cpu().numpy() for part in parts])


def noise_source(generator: Any, shape: tuple[int, ...]) -> NoiseSource:
    """The noise source that a caller's ``generator`` argument means.

    Args:
        generator: ``None`` (fresh entropy), an int (its images take the seeds from there on), a sequence of ints
            (their seeds), a ``numpy.random.Generator``, a ``torch.Generator`` or a list of those.
        shape: ``(N, C, H, W)``.

    Raises:
        InputError: anything else, or not as many as images.
    """
    if generator is None or isinstance(generator, np.random.Generator):
        return NumpyNoise(np.random.default_rng(generator), shape)
    if isinstance(generator, int | np.integer):
        return PortableNoise([int(generator) + index for index in range(shape[0])], shape[1:])
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    if several and all(isinstance(item, int | np.integer) for item in several):
        checked_each(several, "seed", shape[0])
        return PortableNoise(several, shape[1:])
    if several and all(_is_torch_generator(item) for item in several):
        return TorchNoise(several, shape)
    raise InputError(
        f"generator is {type(generator).__name__}, expected an int or a list of them, a torch.Generator or a list of "
        "them, or a numpy.random.Generator"
    )


def check_seeds(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Seeds as ``[N]`` uint64; ``InputError`` if there is none or one does not fit 64 bits, or there are too many."""
    checked_sequence("seeds", seeds, "a list of whole numbers, one for each image")
    try:
        count = len(seeds)
    except OverflowError:   # of a range
        count = sys.maxsize
    if count == 0:
        raise InputError("no seeds: at least one is needed, one for each image")
    if count > MOST_SEEDS:
        raise InputError(f"more than {MOST_SEEDS:,} seeds for one run")
    for seed in seeds:
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            raise InputError(f"seed {one_line(seed)} is not an integer")
        if not 0 <= seed < 1 << 64:
            raise InputError(f"seed {one_line(seed)} does not fit 64 bits: expected 0 to 2^64 - 1")
    return np.array([int(seed) for seed in seeds], np.uint64)


def _is_torch_generator(item: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Generator)
