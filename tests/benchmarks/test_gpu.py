"""benchmarks/gpu.py, tried on the CPU: subjects in groups, one that fails is a row, and a run goes on."""

import json
import sys

import pytest

import gpu
from gpu_subjects import PlainExport
from timing import Subject

pytestmark = pytest.mark.slow
OURS = "sde-onnx fp32"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--networks", "digits", "--batches", "16",
                                      "--turns", "1", *arguments])
    gpu.main()


def test_a_subject_that_fails_is_a_row(monkeypatch, tmp_path, capsys):
    chosen = gpu.subjects

    def with_a_broken_one(folder, batch, device):
        broken = Subject("broken", PlainExport, (str(folder / "checkpoint"), device, "missing.onnx"))
        return [*chosen(folder, batch, device), broken]

    monkeypatch.setattr(gpu, "subjects", with_a_broken_one)
    output = tmp_path / "cuda.json"
    run(monkeypatch, "--output", str(output), "--subjects", OURS, "broken")
    [row] = json.loads(output.read_text())["rows"]
    assert set(row["subjects"]) == {gpu.ORACLE, gpu.REFERENCE, OURS, "broken"}
    assert "missing.onnx" in row["subjects"]["broken"]["failure"]
    ours = row["subjects"][OURS]
    assert max(ours["errors"].values()) < 1e-5
    assert 0 < ours["extras"]["evaluation_seconds"] < ours["median"]
    before = output.read_text()
    capsys.readouterr()
    run(monkeypatch, "--output", str(output), "--subjects", OURS, "broken", "--resume")
    assert output.read_text() == before
    assert "ms a step" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no subject is named ours"):
        run(monkeypatch, "--subjects", "ours")
    with pytest.raises(SystemExit, match="stopped in time"):
        run(monkeypatch, "--subjects", OURS, "--seconds", "0.001")
