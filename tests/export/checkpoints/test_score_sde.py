import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.errors import CheckpointError
from sde_onnx.export import export, from_score_sde
from sde_onnx.export.checkpoints import config_files, load_network, score_sde

from networks import worst_relative_error

NAMES = ["cifar10_ncsnpp_continuous", "cifar10_ncsnpp", "church_ncsnpp_continuous", "ffhq_ncsnpp_continuous",
         "cifar10_ddpm"]
ROUNDING = 5e-6


@pytest.fixture(params=NAMES)
def folder(request, golden):
    return golden / "score_sde" / request.param


@pytest.fixture
def small(golden):
    return golden / "score_sde" / "cifar10_ncsnpp_continuous"


def test_the_file_equals_the_recorded_score(folder, tmp_path):
    recorded = np.load(folder / "io.npz")
    checkpoint = from_score_sde(folder / "checkpoint.pth", str(folder / "config.json"))
    export(checkpoint, tmp_path / "m.onnx")
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    error = worst_relative_error(model(recorded["x"], recorded["sigma"]), recorded["score"])
    print(f"{folder.name}: {error:.2e}")
    assert error < ROUNDING
    assert model.metadata.architecture["discrete"] == (checkpoint.network.config.embedding == "positional")
    assert model.metadata.source["name"] == "checkpoint.pth"


def test_the_weights_without_their_average_miss_by_far(folder):
    recorded = np.load(folder / "io.npz")
    config = score_sde.network_config(json.loads((folder / "config.json").read_text()))
    contents = torch.load(folder / "checkpoint.pth", weights_only=True)
    trainable = [key for key in contents["model"] if not key.endswith(("all_modules.0.W", "sigmas"))]
    contents["ema"]["shadow_params"] = [contents["model"][key] for key in trainable]
    network = load_network(config, score_sde.ema_weights(contents), score_sde.score_sde_keys(config), source="raw")
    with torch.no_grad():
        score = network(torch.tensor(recorded["x"]), torch.tensor(recorded["sigma"])).numpy()
    assert worst_relative_error(score, recorded["score"]) > 1000 * ROUNDING


def test_a_sigma_off_the_trained_levels_takes_the_nearest(golden):
    folder = golden / "score_sde" / "cifar10_ncsnpp"
    network = from_score_sde(folder / "checkpoint.pth", str(folder / "config.json")).network
    levels = np.geomspace(0.01, 50, 1000)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        on = network(x, torch.tensor(levels[[300, 700]], dtype=torch.float32))
        off = network(x, torch.tensor(levels[[300, 700]] * np.array([1.003, 0.997]), dtype=torch.float32))
        other = network(x, torch.tensor(levels[[301, 699]], dtype=torch.float32))
    assert torch.equal(on, off)
    assert not torch.equal(on, other)


PYTHON_DEFAULTS = '''
import ml_collections
import torch


def get_default_configs():
  config = ml_collections.ConfigDict()
  # training
  config.training = training = ml_collections.ConfigDict()
  config.training.batch_size = 128
  training.n_iters = 1300001
  config.sampling = sampling = ml_collections.ConfigDict()
  sampling.snr = 0.16
  config.data = data = ml_collections.ConfigDict()
  data.image_size = 32
  config.model = model = ml_collections.ConfigDict()
  model.sigma_max = 50
  model.beta_max = 20.
  config.seed = 42
  config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')
  return config
'''
PYTHON_CONFIG = '''"""Training a network."""
from configs.default_test_configs import get_default_configs


def get_config():
  """Returns it."""
  config = get_default_configs()
  training = config.training
  training.sde = 'vesde'
  model = config.model
  model.ch_mult = (1, 2, -2)
  model.fir_kernel = [1, 3, 3, 1]
  model.nf = config.data.image_size
  return config
'''


@pytest.fixture
def python_config(tmp_path):
    (tmp_path / "configs" / "ve").mkdir(parents=True)
    (tmp_path / "configs" / "default_test_configs.py").write_text(PYTHON_DEFAULTS)
    path = tmp_path / "configs" / "ve" / "network.py"
    path.write_text(PYTHON_CONFIG)
    return path


def test_a_python_config_is_read_with_its_defaults(python_config):
    tree = config_files.read_config(str(python_config))
    assert tree["training"] == {"batch_size": 128, "n_iters": 1300001, "sde": "vesde"}
    assert tree["model"] == {"sigma_max": 50, "beta_max": 20.0, "ch_mult": (1, 2, -2), "fir_kernel": [1, 3, 3, 1],
                             "nf": 32}
    assert tree["sampling"] == {"snr": 0.16}


@pytest.mark.parametrize(("line", "message"), [
    ("  open('stolen', 'w')", r"line 7: `open\('stolen', 'w'\)` is no plain assignment, and a config is not run"),
    ("  if True: pass", "line 7: `if True:` is no plain assignment"),
    ("  for i in (1,): pass", "line 7: `for i in"),
    ("  config = missing", "line 7: `missing` is no plain"),
    ("  config.model.nf.x = 1", "line 7: `config` is no plain"),
    ("  config = (", "cannot be read"),
    ("  config = " + 50_000 * "-" + "1", "cannot be read"),
    ("  config = a" + 5_000 * ".b", "no plain assignment|cannot be read"),
    ("  config = {[]: 1}", "cannot be read|no plain assignment"),
])
def test_a_python_config_is_not_run(line, message, python_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    python_config.write_text(PYTHON_CONFIG.replace("  config = get_default_configs()", line))
    with pytest.raises(CheckpointError, match=message) as caught:
        config_files.read_config(str(python_config))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "stolen").exists()


@pytest.mark.filterwarnings("error")
def test_pythons_warnings_of_a_damaged_config_are_not_told(python_config):
    """They would be lines beside the one that says what is wrong."""
    python_config.write_text(python_config.read_text() + "  config.model.sigma_min = 0ing = 1\n")
    with pytest.raises(CheckpointError, match="cannot be read: invalid syntax"):
        config_files.read_config(str(python_config))


def test_a_python_config_that_takes_its_defaults_from_itself_is_refused(python_config):
    defaults = python_config.parents[1] / "default_test_configs.py"
    defaults.write_text(PYTHON_CONFIG.replace("def get_config", "def get_default_configs"))
    with pytest.raises(CheckpointError, match="which takes its own from there"):
        config_files.read_config(str(python_config))


def test_a_python_config_without_its_defaults_is_refused(python_config):
    (python_config.parents[1] / "default_test_configs.py").unlink()
    with pytest.raises(CheckpointError, match="default_test_configs.py is neither beside it nor above"):
        config_files.read_config(str(python_config))


def altered(folder, tmp_path, section, option, value):
    tree = json.loads((folder / "config.json").read_text())
    if value is None:
        del tree[section][option]
    else:
        tree[section][option] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.mark.parametrize(("section", "option", "value", "message"), [
    ("training", "sde", "vpsde", "option sde = 'vpsde' is not supported, expected 'vesde'"),
    ("training", "sde", "subvpsde", "option sde = 'subvpsde' is not supported"),
    ("model", "name", "ncsnv2", "option name = 'ncsnv2' is not supported, expected 'ncsnpp' or 'ddpm'"),
    ("model", "nf", 32, r"has shape \[.*\], expected \[.*\] by the config"),
    ("model", "num_res_blocks", 2, "the weights do not fit the config"),
    ("model", "nf", None, "has no option 'nf'"),
    ("model", "num_scales", None, "has no option 'num_scales'"),
    ("model", "nf", "many", r"config .*config.json: option nf = 'many', expected a number"),
    ("model", "ch_mult", [1, None], r"option ch_mult = \[1, None\], expected a list of whole numbers"),
    ("model", "attn_resolutions", 16, "option attn_resolutions = 16, expected a list of whole numbers"),
    ("data", "image_size", 16.5, "option image_size = 16.5, expected a whole number"),
    ("model", "num_scales", 10.5, "option num_scales = 10.5, expected a whole number"),
    ("sampling", "snr", "high", "option snr = 'high', expected a number"),
    ("sampling", "snr", 10**400, "option snr = 1000000.*, expected a number"),
    ("model", "embedding_type", "sinus", "embedding is 'sinus', expected one of: fourier, positional"),
    ("model", "fir", "yes", "fir is 'yes', expected one of: False, True"),
    ("model", "resblock_type", [], r"resblock is \[\], expected one of: biggan, ddpm"),
    ("model", "num_res_blocks", 10000, "num_res_blocks is 10000, expected a whole number of 1 to 64"),
    ("model", "nf", 2**20, "are not all whole numbers of 1 to 16384"),
    ("data", "centered", True, "option centered = True is not supported, expected False"),
    ("data", "image_size", 65536, "image_size is 65536, expected a whole number of 1 to 2048"),
])
def test_a_config_that_does_not_fit_is_refused(section, option, value, message, small, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_score_sde(small / "checkpoint.pth", altered(small, tmp_path, section, option, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("contents", "message"), [
    ({"model": {}}, "holds no moving average"),
    ({"ema": {}}, "holds no 'model' with named weights"),
    ({"model": {}, "ema": {}}, "has no list of 'shadow_params'"),
    ({"model": {}, "ema": None}, "has no list of 'shadow_params'"),
    ({"model": {}, "ema": {"shadow_params": [None]}}, "one of its 'shadow_params' is a NoneType, expected a tensor"),
    ({"model": {1: torch.zeros(1)}, "ema": {}}, "'model' holds a dict, expected named tensors"),
    ({"model": {"a": torch.zeros(2).to_sparse()}, "ema": {}}, "torch.sparse_coo, on cpu, expected a plain one"),
    ({"model": {"a": torch.zeros(2, device="meta")}, "ema": {}}, "on meta, expected a plain one"),
    ({"model": {"a.NIN_0.W": torch.zeros(2)}, "ema": {"shadow_params": [torch.zeros(2)]}}, "weights do not fit"),
    ([1, 2], "holds no 'model' with named weights"),
])
def test_a_checkpoint_of_something_else_is_refused(contents, message, small, tmp_path):
    torch.save(contents, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=message):
        from_score_sde(tmp_path / "checkpoint.pth", str(small / "config.json"))


def test_missing_files_are_named(small, tmp_path):
    with pytest.raises(CheckpointError, match="missing, expected a .pth file"):
        from_score_sde(tmp_path / "checkpoint.pth", str(small / "config.json"))
    with pytest.raises(CheckpointError, match="No such file"):
        from_score_sde(small / "checkpoint.pth", str(tmp_path / "config.json"))
    with pytest.raises(CheckpointError, match="neither a .json or .py file nor one of: cifar10_ncsnpp, "):
        from_score_sde(small / "checkpoint.pth", "cifar")


def test_sigmas_can_be_replaced(small):
    checkpoint = from_score_sde(small / "checkpoint.pth", str(small / "config.json"), sigma_max=40.0, snr=0.2)
    assert (checkpoint.schedule.sigma_max, checkpoint.snr) == (40.0, 0.2)


def test_the_command(small, tmp_path):
    arguments = ["export", str(small / "checkpoint.pth"), "-o", str(tmp_path / "m.onnx")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "needs --config: a .json or .py file, or one of cifar10_ncsnpp," in " ".join(refused.output.split())
    result = CliRunner().invoke(main, [*arguments, "--config", str(small / "config.json")])
    assert result.exit_code == 0, result.output
    assert sde_onnx.read_metadata(tmp_path / "m.onnx").schedule.sigma_max == 50
