"""Pictures of the bundled digits as the code of commit 38f7e99 made them, before every solver became a plan.

Every option that a case depends on is named, so that no default moves it. Run as a program, this file records anew:
only for a picture that is meant to change.
"""

from pathlib import Path

import numpy as np
import pytest

import sde_onnx

RECORDED = Path(__file__).with_name("recorded_pictures.npz")
SEEDS = (3, 2**60)
# ONNX Runtime's kernels differ between processors: rounding, carried through every step.
TOLERANCE = 2e-3

KARRAS = {"schedule": "karras", "rho": 7.0}
PC = {"snr": 0.16, "n_corrector": 1, "predictor": "reverse_diffusion", "corrector": "langevin",
      "probability_flow": False, "langevin_norm": "image"}
CASES = {
    "pc": ("pc", 40, PC),
    "pc one step": ("pc", 1, PC),
    "pc batch norm": ("pc", 12, PC | {"langevin_norm": "batch"}),
    "pc two corrections": ("pc", 12, PC | {"n_corrector": 2, "snr": 0.1}),
    "pc ancestral": ("pc", 12, PC | {"predictor": "ancestral", "corrector": "none"}),
    "pc ancestral ald": ("pc", 12, PC | {"predictor": "ancestral", "corrector": "ald"}),
    "pc euler-maruyama": ("pc", 12, PC | {"predictor": "euler_maruyama"}),
    "pc euler-maruyama alone": ("pc", 12, PC | {"predictor": "euler_maruyama", "n_corrector": 0}),
    "pc langevin alone": ("pc", 12, PC | {"predictor": "none"}),
    "pc ald alone": ("pc", 12, PC | {"predictor": "none", "corrector": "ald", "n_corrector": 2}),
    "pc probability flow": ("pc", 40, PC | {"probability_flow": True, "corrector": "none"}),
    "pc probability flow corrected": ("pc", 12, PC | {"probability_flow": True}),
    "ancestral": ("ancestral", 20, {"schedule": "geometric"}),
    "ancestral karras": ("ancestral", 12, {"schedule": "karras", "rho": 5.0}),
    "sde-dpmpp-2m": ("sde-dpmpp-2m", 25, KARRAS | {"eta": 1.0}),
    "sde-dpmpp-2m rho 3": ("sde-dpmpp-2m", 25, {"schedule": "karras", "rho": 3.0, "eta": 1.0}),
    "sde-dpmpp-2m eta 2": ("sde-dpmpp-2m", 25, KARRAS | {"eta": 2.0}),
    "sde-dpmpp-2m eta 0.5": ("sde-dpmpp-2m", 12, KARRAS | {"eta": 0.5}),
    "sde-dpmpp-2m eta 0": ("sde-dpmpp-2m", 12, KARRAS | {"eta": 0.0}),
    "sde-dpmpp-3m": ("sde-dpmpp-3m", 12, KARRAS | {"eta": 1.0}),
    "sde-dpmpp-3m geometric": ("sde-dpmpp-3m", 12, {"schedule": "geometric", "eta": 0.5}),
    "dpmpp-2m": ("dpmpp-2m", 12, KARRAS | {"measure_noise": False}),
    "dpmpp-2m measured": ("dpmpp-2m", 12, KARRAS | {"measure_noise": True}),
    "dpmpp-3m": ("dpmpp-3m", 12, {"schedule": "geometric", "measure_noise": False}),
    "dpmpp-3m measured": ("dpmpp-3m", 8, KARRAS | {"measure_noise": True}),
    "heun": ("heun", 9, KARRAS | {"measure_noise": False}),
    "heun measured": ("heun", 9, KARRAS | {"measure_noise": True}),
    "heun geometric": ("heun", 9, {"schedule": "geometric", "measure_noise": False}),
    "stochastic-heun": ("stochastic-heun", 12, KARRAS | {"churn": 40.0, "churn_min": 0.0, "churn_noise": 1.0}),
    "stochastic-heun in a range": ("stochastic-heun", 12, KARRAS | {"churn": 10.0, "churn_min": 0.1, "churn_max": 5.0,
                                                                    "churn_noise": 1.003}),
    "adaptive-sde": ("adaptive-sde", None, {"rtol": 0.2, "atol": 0.02}),
    "rk45": ("rk45", None, {"rtol": 1e-2, "atol": 1e-2}),
}


def pictures(model, case):
    """``x_mean`` after the middle and after the last step: ``[2, N, C, H, W]``."""
    solver, steps, options = CASES[case]
    [batch] = sde_onnx.sample_batches(model, SEEDS, steps, solver=solver, **options)
    means = [step.x_mean for step in batch.steps]
    return np.stack([means[len(means) // 2], means[-1]])


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_as_they_were(case, digits):
    with np.load(RECORDED) as recorded:
        # In the middle noise is left, as large as its sigma: there the error is relative.
        expected = recorded[case]
    got = pictures(digits, case)
    scale = np.maximum(1, np.abs(expected).max(axis=(1, 2, 3, 4), keepdims=True))
    np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=TOLERANCE)


if __name__ == "__main__":
    digits_model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    np.savez_compressed(RECORDED, **{case: pictures(digits_model, case) for case in CASES})
