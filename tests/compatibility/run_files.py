"""Runs files under a runtime that is installed beside numpy alone: python run_files.py onnxruntime|openvino FOLDER.

cases.json names them. NAME.npz holds what NAME.onnx takes, as in_INPUT, and what it should make, as out_OUTPUT. Written
for Python 3.11 and whatever numpy the runtime brings; prints JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np


class OnnxRuntime:
    def __init__(self, path):
        import onnxruntime

        self.version = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(self, names, feeds):
        return self._session.run(names, feeds)


class OpenVino:
    def __init__(self, path):
        import openvino

        self.version = openvino.__version__
        core = openvino.Core()
        # Left to itself the plugin calculates in bfloat16 or float16 where the processor has units for them.
        self._model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(self, names, feeds):
        results = self._model(feeds)
        return [results[name] for name in names]


def driven(session, feeds):
    """The image that an evaluation file makes, driven as docs/embedding.md says."""
    states = [name for name in feeds if name == "x" or name.startswith("memory")]
    index, remaining = 0, 1
    while remaining:
        *following, image, left = session.run([*(f"{name}_next" for name in states), "x_mean", "remaining"],
                                              {**feeds, "index": np.array([index])})
        feeds = {**feeds, **dict(zip(states, following, strict=True))}
        index, remaining = index + 1, int(left[0])
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def compared(results, expected):
    """8-bit images by their values, anything else by its relative error."""
    found = {}
    for name, wanted in expected.items():
        got = results[name]
        if wanted.dtype == np.uint8:
            difference = np.abs(got.astype(int) - wanted)
            found.update(equal=float((difference == 0).mean()), largest=int(difference.max()))
        else:
            error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
            found["relative_error"] = max(error, found.get("relative_error", 0.0))
    return found


def main():
    runtime, folder = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[sys.argv[1]], Path(sys.argv[2])
    cases = {}
    for case in json.loads((folder / "cases.json").read_text()):
        with np.load(folder / f"{case}.npz") as held:
            feeds = {name[3:]: held[name] for name in held if name.startswith("in_")}
            expected = {name[4:]: held[name] for name in held if name.startswith("out_")}
        try:
            session = runtime(folder / f"{case}.onnx")
            results = {"image": driven(session, feeds)} if "x" in feeds and "seed" in feeds else dict(
                zip(expected, session.run(list(expected), feeds), strict=True))
            cases[case] = compared(results, expected)
        except Exception as error:  # noqa: BLE001  # of whatever kind the runtime raises
            cases[case] = {"error": " ".join(str(error).split())[-300:]}
    print(json.dumps({"version": sys.modules[sys.argv[1]].__version__, "cases": cases}))


if __name__ == "__main__":
    main()
