"""Runs split among processes: parts that are all there is, once each, and outputs that are those of one process."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import done, refuses
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sde_onnx
from sde_onnx.errors import InputError
from sde_onnx.generate.shards import WHOLE, Shard, parse_shard, shard_of_environment

LAUNCHED = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 12))
def test_shards_are_all_items_once_and_whole_blocks(length, size, count):
    items = list(range(length))
    parts = [Shard(index, count).blocks(items, size) for index in range(count)]
    assert sorted(item for part in parts for item in part) == items
    blocks = [items[first : first + size] for first in range(0, length, size)]
    for part in parts:
        assert [part[first : first + size] for first in range(0, len(part), size)] == [
            block for block in blocks if block[0] in part]
    spans = [items[Shard(index, count).span(length)] for index in range(count)]
    assert [item for span in spans for item in span] == items
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_a_shard_is_read_from_text():
    assert parse_shard("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"
    for text in ("4/4", "0/0", "-1/4", "1", "a/b", "1/2/3", "0/10000000"):
        with pytest.raises(InputError, match="expected I/N"):
            parse_shard(text)


def test_launchers_tell_the_shard():
    assert shard_of_environment({}) == WHOLE
    assert shard_of_environment({"RANK": "3"}) == WHOLE   # of nobody knows how many
    torchrun, slurm = {"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}
    assert str(shard_of_environment(torchrun)) == "1/2"
    assert str(shard_of_environment(slurm)) == "3/8"
    assert str(shard_of_environment(torchrun | slurm)) == "1/2"
    script = slurm | {"SLURM_JOB_ID": "77"}   # which srun has not begun: it would be task 0 of all
    assert shard_of_environment(script) == WHOLE
    assert str(shard_of_environment(script | {"SLURM_STEP_ID": "0"})) == "3/8"
    with pytest.raises(InputError, match="RANK=2 of WORLD_SIZE=2 is no shard"):
        shard_of_environment({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="RANK=x of WORLD_SIZE=2 is no shard"):
        shard_of_environment({"RANK": "x", "WORLD_SIZE": "2"})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SAMPLE = ["sample", "--seeds", "5-30", "--steps", "3", "--batch-size", "4", "--provider", "cpu"]


@pytest.mark.parametrize("form", [[], ["--shards"], ["--subdirs"]])
def test_shards_of_a_sample_are_the_images_of_one_run(form, tmp_path):
    done(*SAMPLE, *form, "-o", tmp_path / "one")
    for index in (2, 0, 1):
        told = done(*SAMPLE, *form, "--shard", f"{index}/3", "-o", tmp_path / "parts")
        assert "26 images" not in told.stdout
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
    again = done(*SAMPLE, *form, "--shard", "0/3", "-o", tmp_path / "parts")
    assert "10 of 10 images were there already" in again.stdout
    assert "26 of 26 images were there already" in done(*SAMPLE, *form, "-o", tmp_path / "parts").stdout


def test_batches_are_shared_out_where_the_user_names_no_size(tmp_path):
    """One batch would be one shard's."""
    for index in range(3):
        told = done("sample", "--seeds", "0-6", "--steps", 2, "--shard", f"{index}/3", "-o", tmp_path / "parts").stdout
        assert f"seeds {('0-2', '3-5', '6')[index]}," in told
    assert "has none of 1 image," in done("sample", "--seeds", 7, "--steps", 2, "--shard", "1/2", "-o",
                                          tmp_path / "one").stdout


def test_a_launchers_shard_is_told_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    told = done(*SAMPLE, "-o", tmp_path / "parts")
    assert told.stderr.startswith("Note: shard 1/2 by SLURM_PROCID and SLURM_NTASKS: 12 of 26 images; --shard 0/1 does "
                                  "all\n")
    assert "Note" not in done(*SAMPLE, "--shard", "0/1", "-o", tmp_path / "parts").stderr
    refuses("shard 1/2 (SLURM_PROCID, SLURM_NTASKS) is a part of the images; all parts go into one folder", "sample",
            "-o", tmp_path / "s.png", status=2)
    monkeypatch.setenv("SLURM_PROCID", "9")
    refuses("SLURM_PROCID=9 of SLURM_NTASKS=2 is no shard", "sample", "-o", tmp_path / "s.png", status=2)


def test_what_does_not_go_with_shards(tmp_path):
    for option in (["--grid"], ["--gif", tmp_path / "a.gif"]):
        refuses("--grid and --gif show all: run with --shard 0/1", *SAMPLE, "--shard", "0/2", *option, "-o",
                tmp_path / "parts", status=2)
    refuses("--force would replace what other shards have made", *SAMPLE, "--shard", "0/2", "--force", "-o",
            tmp_path / "parts", status=2)
    refuses("'2' is no shard, expected I/N", *SAMPLE, "--shard", "2", "-o", tmp_path / "parts", status=2)
    done(*SAMPLE, "--shard", "0/2", "-o", tmp_path / "parts")
    refuses("make 4 images at a time, this one 5: all need the same --batch-size", *SAMPLE,
            "--shard", "1/2", "--batch-size", 5, "-o", tmp_path / "parts")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_shards_of_a_restoration_are_the_pictures_of_one_run(pictures, tmp_path):
    command = ["restore", pictures, "--operator", "gray", "--degrade", "--method", "null-space", "--steps", 2,
               "--seeds", "0-2", "--provider", "cpu"]
    done(*command, "-o", tmp_path / "one")
    for index in range(2):
        done(*command, "--shard", f"{index}/2", "-o", tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_shards_of_a_likelihood_are_the_table_of_one_run(suffix, pictures, tmp_path):
    command = ["likelihood", sde_onnx.bundled_gradient(), pictures, "--steps", 2, "--batch-size", 1, "--provider",
               "cpu"]
    done(*command, "-o", tmp_path / f"one{suffix}")
    parts = tmp_path / f"parts{suffix}"
    for index, measured in ((1, 2), (2, 4)):
        told = done(*command, "--shard", f"{index}/3", "-o", parts).stdout
        assert f"of all 5 {measured} are measured, and the last shard to end writes {parts}" in told
        assert not parts.exists()
    refuses("--force would drop what other shards have measured", *command, "--force", "--shard", "1/3", "-o", parts,
            status=2)
    refuses("was begun with other settings", *command, "--probes", 3, "--shard", "1/3", "-o", parts)
    done(*command, "--shard", "3/4", "-o", parts)   # of another split, and of no use at the end
    assert f"{parts}: 5 images" in done(*command, "--shard", "0/3", "-o", parts).stdout
    assert parts.read_text() == (tmp_path / f"one{suffix}").read_text()
    assert not list(tmp_path.glob(".*"))
    if suffix == ".csv":
        assert len(list(csv.reader(parts.read_text().splitlines()))) == 7


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="kill -9, and locks that the system takes back")
def test_a_shard_that_was_killed_goes_on_where_it_was(tmp_path):
    """Three at once in one folder, one of them killed while it writes, and begun again beside a second of the same."""
    command = [sys.executable, "-m", "sde_onnx", "sample", "--seeds", "0-299", "--steps", "4", "--batch-size", "4",
               "--provider", "cpu", "--threads", "1", "-o", str(tmp_path / "parts")]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}

    def begun(index):
        return subprocess.Popen([*command, "--shard", f"{index}/3"], env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE)

    shards = [begun(index) for index in range(3)]
    until = time.monotonic() + 120
    while len(list((tmp_path / "parts").glob("*.png"))) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    shards[1].send_signal(signal.SIGKILL)
    assert shards[1].wait() == -signal.SIGKILL
    shards += [begun(1), begun(1)]
    for shard in (shards[0], *shards[2:]):
        assert shard.wait(300) == 0, shard.stderr.read()
    done(*command[3:-1], tmp_path / "one")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
