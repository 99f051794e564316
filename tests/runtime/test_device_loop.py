"""The loop on a device, on the CPU: a file for CUDA with its kernels emulated, against the host's loop."""

import dataclasses
import threading
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import sde_onnx
from sde_onnx.errors import InputError, ModelFileError, NonFiniteError
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.rewrites.emulation import emulated
from sde_onnx.images import to_uint8
from sde_onnx.runtime import device_loop
from sde_onnx.runtime import load as loading
from sde_onnx.runtime.device_loop import DeviceLoop, room_for
from sde_onnx.runtime.metadata import ROWS_KEY
from sde_onnx.solvers.noise import PortableNoise
from sde_onnx.solvers.plan import COLUMNS, rows

pytestmark = pytest.mark.thorough   # its network is exported for CUDA first

SEEDS = [1, 2, 2**60]
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def files(checkpoint16, shared):
    """The network of model_file for CUDA, and the same with its kernels emulated."""
    def make(folder):
        folder.mkdir()
        export(from_diffusers(checkpoint16), folder / "cuda.onnx", target="cuda")
        onnx.save(emulated(onnx.load(folder / "cuda.onnx")), folder / "emulated.onnx")

    return shared("loop", make)


@pytest.fixture(scope="module")
def host(model):
    return model


@pytest.fixture(scope="module")
def loop(files):
    return DeviceLoop(session_of(files), "cpu", (len(SEEDS), *SHAPE), 64)


def session_of(files):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("N", len(SEEDS))
    return ort.InferenceSession(str(files / "emulated.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def device_model(files, monkeypatch):
    """What :func:`sde_onnx.load` gives of a file for CUDA, where the CPU stands in for it."""
    monkeypatch.setattr(loading, "choose_provider", lambda name, precision="fp32": "cpu")
    return sde_onnx.load(files / "emulated.onnx")


def plan_of(model, solver, steps, **options):
    return sde_onnx.resolve(model.metadata, solver=solver, steps=steps, options=options).plan


SOLVERS = [
    ("pc", 10, {}),
    ("pc", 6, {"langevin_norm": "batch", "n_corrector": 2}),
    ("pc", 6, {"predictor": "ancestral", "corrector": "ald"}),
    ("pc", 6, {"predictor": "euler_maruyama", "snr": 0.3}),
    ("pc", 6, {"predictor": "none"}),
    ("pc", 6, {"probability_flow": True, "corrector": "none"}),
    ("sde-dpmpp-2m", 8, {}),
    ("sde-dpmpp-3m", 8, {"eta": 0.5}),
    ("dpmpp-3m", 8, {"schedule": "geometric"}),
    ("ancestral", 8, {}),
    ("heun", 6, {}),
    ("restart", 12, {}),
    ("stochastic-heun", 6, {"churn": 10.0}),
    ("stochastic-heun", 6, {"churn_min": 0.1, "churn_max": 5.0}),
]


@pytest.mark.parametrize(("solver", "steps", "options"), SOLVERS)
def test_every_step_is_that_of_the_hosts_loop(solver, steps, options, host, loop):
    [batch] = sde_onnx.sample_batches(host, SEEDS, steps, solver=solver, **options)
    run = loop.run(plan_of(host, solver, steps, **options), PortableNoise(SEEDS, SHAPE))
    for theirs, ours in zip(batch.steps, run, strict=True):
        assert (ours.index, ours.nfe) == (theirs.index, theirs.nfe)
        assert ours.sigma == pytest.approx(theirs.sigma)
        for name in ("x_mean",) if "churn" in str(options) or solver == "stochastic-heun" else ("x", "x_mean"):
            expected = getattr(theirs, name)
            assert np.linalg.norm(getattr(ours, name) - expected) <= 5e-5 * np.linalg.norm(expected)
    assert np.abs(to_uint8(ours.x_mean).astype(int) - to_uint8(theirs.x_mean)).max() <= 1


def test_a_table_has_few_sizes():
    """A captured graph serves again where the table has the size that it was captured with."""
    assert [room_for(count) for count in (1, 4095, 4096, 5000, 8191, 8192)] == [4096, 4096, 8192, 8192, 8192, 16384]


def test_a_runs_noise_is_drawn_once_each_and_ahead(host, loop):
    """Not one array more than the host's loop draws: what follows a run would see the difference."""
    noise = PortableNoise(SEEDS, SHAPE)
    for _ in loop.run(plan_of(host, "sde-dpmpp-2m", 5), noise):
        pass
    assert noise.draw == 5   # the latent, and every step but the last


def test_nothing_is_left_of_a_run_that_was_left(host, loop):
    plan = plan_of(host, "pc", 5)
    runs = [list(loop.run(plan, PortableNoise(SEEDS, SHAPE)))[-1].x_mean for _ in range(2)]
    interrupted = loop.run(plan, PortableNoise([7, 8, 9], SHAPE))
    next(interrupted)
    interrupted.close()
    runs.append(list(loop.run(plan, PortableNoise(SEEDS, SHAPE)))[-1].x_mean)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_what_the_buffers_no_longer_hold_is_refused(host, loop):
    plan = plan_of(host, "pc", 4)
    run = loop.run(plan, PortableNoise(SEEDS, SHAPE))
    first, second = next(run), next(run)
    assert np.isfinite(second.x).all()
    with pytest.raises(InputError, match="read them before it"):
        _ = first.x
    other = next(loop.run(plan, PortableNoise(SEEDS, SHAPE)))
    assert np.isfinite(other.x_mean).all()
    with pytest.raises(InputError, match="another batch has begun"):
        _ = second.x_mean
    with pytest.raises(InputError, match="another batch has begun"):
        next(run)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_what_is_not_finite_is_told_with_its_step(lost, host, loop):
    plan = plan_of(host, "pc", 5)
    noise = PortableNoise(SEEDS, SHAPE)

    def broken():
        z = noise()
        return np.abs(z) * np.float32(lost) if noise.draw == 7 else z   # of the third step's prediction

    with pytest.raises(NonFiniteError, match=r"NaN or infinity at step 3 of 5 \(sigma"):
        list(loop.run(plan, broken))
    run, noise.draw = loop.run(plan, broken), 0
    next(run)
    assert np.isfinite(next(run).x).all()
    with pytest.raises(NonFiniteError, match="at step 3 of 5"):
        _ = next(run).x_mean


def test_the_first_evaluation_that_is_not_finite_is_the_one_told(host, loop):
    noise = PortableNoise(SEEDS, SHAPE)

    def broken():
        z = noise()
        return z * np.float32(np.nan) if noise.draw == 2 else z   # of the first step

    with pytest.raises(NonFiniteError, match="at step 1 of 5"):
        list(loop.run(plan_of(host, "sde-dpmpp-2m", 5), broken))


def test_rows_are_what_the_graph_reads(host):
    table = rows(plan_of(host, "pc", 3))
    assert table.shape == (6, len(COLUMNS))
    sigmas = [float(level.sigma_cond) for level in host.metadata.schedule.levels(3)]
    np.testing.assert_allclose(table[:, COLUMNS.index("sigma")], np.repeat(sigmas, 2), rtol=1e-6)
    assert table[:, COLUMNS.index("draw")].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_step_is_a_value(host, loop):
    step = next(loop.run(plan_of(host, "pc", 3), PortableNoise(SEEDS, SHAPE)))
    assert dataclasses.replace(step) == step
    assert dataclasses.replace(step, index=5) != step


def test_a_file_of_other_rows_is_refused(files, tmp_path):
    for number, told in (("1", "rows of format 1"), (None, "rows of format 1"), ("9", "rows of format 9")):
        mend = "upgrade sde-onnx" if number == "9" else "export it again"
        model = onnx.load(files / "cuda.onnx")
        properties = {item.key: item.value for item in model.metadata_props} | {ROWS_KEY: number}
        onnx.helper.set_model_props(model, {key: value for key, value in properties.items() if value is not None})
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(ModelFileError, match=f"{told}, this sde-onnx writes format 2: {mend}"):
            sde_onnx.read_metadata(tmp_path / "m.onnx")


def test_sampling_a_file_for_cuda_is_the_loop(device_model, host, monkeypatch):
    monkeypatch.setattr(type(device_model), "__call__", None)   # the network alone is not asked
    for solver, steps in (("pc", 5), ("sde-dpmpp-2m", 6)):
        ours = sde_onnx.sample(device_model, range(5), steps, solver=solver, batch_size=2)
        monkeypatch.undo()
        expected = sde_onnx.sample(host, range(5), steps, solver=solver)
        assert np.abs(to_uint8(ours).astype(int) - to_uint8(expected)).max() <= 1
        monkeypatch.setattr(type(device_model), "__call__", None)


def test_the_pipeline_runs_the_loop_too(device_model, host, monkeypatch):
    """With diffusers' noise, which another thread draws in the same order, and norms over the batch."""
    monkeypatch.setattr(type(device_model), "__call__", None)
    ours = sde_onnx.ScoreSdeVePipeline(device_model)(3, 6, torch.Generator().manual_seed(1), "np").images
    monkeypatch.undo()
    expected = sde_onnx.ScoreSdeVePipeline(host)(3, 6, torch.Generator().manual_seed(1), "np").images
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_file_for_cuda_is_also_a_score(device_model, host, rng):
    x, sigma = rng.random((2, *SHAPE), np.float32), np.array([0.1, 3], np.float32)
    expected = host(x, sigma)
    np.testing.assert_allclose(device_model(x, sigma), expected, atol=1e-5 * np.abs(expected).max())
    adapted = sde_onnx.sample(device_model, [3], solver="rk45", rtol=1e-2, atol=1e-2)
    assert np.abs(adapted - sde_onnx.sample(host, [3], solver="rk45", rtol=1e-2, atol=1e-2)).max() < 1e-2


def test_tensors_are_answered_in_tensors(host, rng):
    x, sigma = rng.random((2, *SHAPE), np.float32), np.array([0.1, 3], np.float32)
    score = host(torch.from_numpy(x), torch.from_numpy(sigma))
    assert isinstance(score, torch.Tensor)
    np.testing.assert_array_equal(score.numpy(), host(x, sigma))
    strided = torch.from_numpy(x).permute(0, 1, 3, 2)
    np.testing.assert_array_equal(host(strided, torch.from_numpy(sigma)).numpy(),
                                  host(np.ascontiguousarray(x.transpose(0, 1, 3, 2)), sigma))
    negative = torch.complex(torch.zeros(x.shape), torch.from_numpy(-x)).conj().imag   # x, by a bit that says so
    assert negative.is_neg()
    np.testing.assert_array_equal(host(negative, torch.from_numpy(sigma)).numpy(), host(x, sigma))
    for bad, message in [
        ((torch.zeros(1, 3, 8, 8), torch.ones(1)), "x is torch.float32"),
        ((torch.zeros(1, *SHAPE), torch.ones(2)), "sigma is torch.float32"),
        ((torch.zeros(1, *SHAPE, dtype=torch.float64), torch.ones(1)), "x is torch.float64"),
        ((torch.zeros(1, *SHAPE), np.ones(1, np.float32)), r"sigma float32 \[1\]; provider cpu takes tensors on cpu"),
        ((torch.zeros(1, *SHAPE, device="meta"), torch.ones(1, device="meta")), "x is on meta"),
    ]:
        with pytest.raises(InputError, match=message):
            host(*bad)


def test_tensors_of_several_threads_are_answered(host, rng):
    """Of more batch sizes than sessions are kept: one may give way to another between two uses."""
    cases = [(rng.random((count, *SHAPE), np.float32), np.full(count, 0.5, np.float32)) for count in (1, 2, 3, 4)]
    expected = [host(*case) for case in cases]
    failures = []

    def ask(place):
        try:
            for _ in range(10):
                score = host(*map(torch.from_numpy, cases[place]))
                np.testing.assert_allclose(score.numpy(), expected[place], rtol=1e-4, atol=1e-4)
        except Exception as error:   # noqa: BLE001  # whatever a thread dies of fails the test
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(index % 4,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_threads_have_a_loop_each(device_model, host):
    """Their steps taken in turns: on the same buffers the second would end the first."""
    expected = [sde_onnx.sample(host, [seed], 6) for seed in (3, 4)]
    sde_onnx.sample(device_model, [9], 2)   # a loop that is there already, which both could take
    turn = threading.Barrier(2, timeout=60)
    found, failures = {}, []

    def run(seed):
        try:
            [batch] = sde_onnx.sample_batches(device_model, [seed], 6)
            for step in batch.steps:
                turn.wait()
                found[seed] = np.clip(step.x_mean, 0, 1)
                turn.wait()
        except Exception as error:   # noqa: BLE001  # whatever a thread dies of fails the test
            failures.append(error)
            turn.abort()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for seed, images in zip((3, 4), expected, strict=True):
        assert np.abs(to_uint8(found[seed]).astype(int) - to_uint8(images)).max() <= 1


def test_nothing_is_copied_while_another_thread_captures(files, host, monkeypatch):
    """CUDA ends a capture when any thread copies; here the CPU stands in, and its capture takes its time."""
    monkeypatch.setattr(device_loop, "CAPTURING", ("cpu",))
    busy, copied_meanwhile = threading.Event(), []

    class Session:
        def __init__(self, session):
            self.session = session
            self.io_binding = session.io_binding

        def run_with_iobinding(self, binding, options):
            capturing = threading.current_thread() is not threading.main_thread()
            if capturing:
                busy.set()
                time.sleep(0.05)
            self.session.run_with_iobinding(binding)
            if capturing:
                busy.clear()

    def watched(name, copies):
        def copy(*arguments):
            if busy.is_set() and threading.current_thread().name != "capturing":
                copied_meanwhile.append(name)
            return copies(*arguments)
        return copy

    opened = Session(session_of(files))
    first = DeviceLoop(opened, "cpu", (len(SEEDS), *SHAPE), 64)
    for name in ("update_inplace", "numpy"):
        monkeypatch.setattr(ort.OrtValue, name, watched(name, getattr(ort.OrtValue, name)))
    thread = threading.Thread(target=lambda: DeviceLoop(opened, "cpu", (len(SEEDS), *SHAPE), 64), name="capturing")
    thread.start()
    assert busy.wait(60)
    for _ in range(3):
        for _ in first.run(plan_of(host, "pc", 4), PortableNoise(SEEDS, SHAPE)):
            pass
    thread.join()
    assert not copied_meanwhile


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "levels"), [("fp32", 2), ("fp16", 64)])
def test_pictures_under_cuda_are_those_of_the_cpu(precision, levels, digits_checkpoint, tmp_path):
    export(from_diffusers(digits_checkpoint), tmp_path / "m.onnx", target="cuda", precision=precision)
    fast, slow = sde_onnx.load(tmp_path / "m.onnx"), sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    for solver, steps in (("pc", 200), ("sde-dpmpp-2m", 25)):
        ours, expected = (to_uint8(sde_onnx.sample(model, range(16), steps, solver=solver)) for model in (fast, slow))
        assert np.abs(ours.astype(int) - expected).max() <= levels


@pytest.mark.gpu
def test_tensors_on_the_device_are_answered_there(digits_checkpoint, tmp_path, rng):
    export(from_diffusers(digits_checkpoint), tmp_path / "m.onnx", target="cuda")
    model = sde_onnx.load(tmp_path / "m.onnx")
    x, sigma = rng.random((2, *SHAPE), np.float32), np.array([0.1, 3], np.float32)
    score = model(torch.from_numpy(x).cuda(), torch.from_numpy(sigma).cuda())
    assert score.is_cuda
    np.testing.assert_allclose(score.cpu().numpy(), model(x, sigma), rtol=1e-4, atol=1e-4)


def test_it_starts_from_the_callers_latents(host, device_model, rng):
    latents = 50 * rng.standard_normal((3, *SHAPE), np.float32)
    ours, theirs = (sde_onnx.sample(model, SEEDS, 6, latents=latents) for model in (device_model, host))
    assert np.abs(ours - theirs).max() < 1 / 255
