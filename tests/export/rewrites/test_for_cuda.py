"""Graphs for CUDA, on a CPU: emulated they are the network, and ONNX Runtime takes them up to its kernels."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.errors import ConfigError, InputError, ProviderError
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig
from sde_onnx.export.rewrites.emulation import emulated
from sde_onnx.export.rewrites.for_cuda import CONTRIB_DOMAIN, write_for_cuda
from sde_onnx.export.to_onnx import build_model, measure_parity
from sde_onnx.runtime.providers import usable_providers
from sde_onnx.solvers.schedule import VeSchedule

SCHEDULE = VeSchedule(0.01, 50.0)
NETWORKS = {
    "biggan": {},
    "residual pyramids": {"progressive": "residual", "progressive_input": "residual", "attn_head_channels": 8},
    "ddpm": {"resblock": "ddpm", "resample_with_conv": True, "progressive": "none", "progressive_input": "none"},
    "no fir": {"resblock": "ddpm", "fir": False, "progressive_combine": "cat"},
    "no fir, convolutions": {"resblock": "ddpm", "fir": False, "resample_with_conv": True, "progressive": "residual",
                             "progressive_input": "residual"},
    "discrete": {"embedding": "positional", "noise_levels": (0.01, 50.0, 100), "scale_by_sigma": False},
    "odd groups": {"norm_groups_at": {"encoder.16x16_block0.norm0": 16, "middle0.norm1": 32}},
    "gray": {"image_channels": 1},
}


def network(**options):
    torch.manual_seed(0)
    config = NCSNppConfig(**{"image_size": 16, "channels": (16, 32), "num_res_blocks": 1, "attn_resolutions": (8,)}
                          | options)
    made = NCSNpp(config).eval()
    with torch.no_grad():   # norms and biases begin as ones and zeros, which hide their order
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def operators(model):
    return {(node.domain, node.op_type) for node in model.graph.node}


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 3e-6), ("fp16", 1e-4, 5e-3),
                                                       ("mixed", 1e-5, 2e-3)])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_emulated_graph_is_the_network(options, precision, least, most):
    """Where float16 is, it must also be off by what that rounds: an emulation in float32 would show nothing."""
    oracle = network(**options)
    model = build_model(oracle, target="cuda", precision=precision)
    session = ort.InferenceSession(emulated(model).SerializeToString(), providers=["CPUExecutionProvider"])
    parity = measure_parity(lambda **inputs: session.run(["score"], inputs)[0], oracle, SCHEDULE)
    assert least <= max(parity.values()) <= most, parity


@pytest.mark.parametrize("options", [NETWORKS["biggan"], NETWORKS["odd groups"]], ids=["plain", "odd groups"])
def test_norms_are_one_kernel_each_wherever_it_takes_them(options):
    model = build_model(network(**options), target="cuda", precision="fp16")
    names = operators(model)
    assert {(CONTRIB_DOMAIN, "NhwcConv"), (CONTRIB_DOMAIN, "GroupNorm"), (CONTRIB_DOMAIN, "SkipGroupNorm")} <= names
    assert ("", "Conv") not in names
    network_nodes = [node for node in model.graph.node if not node.name.startswith("update/")]
    written_out = sum(node.op_type == "ReduceMean" for node in network_nodes) / 2
    assert written_out == len(options.get("norm_groups_at", ()))
    norms = [node for node in model.graph.node if node.op_type in ("GroupNorm", "SkipGroupNorm")]
    activations = [onnx.helper.get_node_attr_value(node, "activation") for node in norms]
    attentions = sum(node.op_type == "Softmax" for node in model.graph.node)
    assert activations.count(0) == attentions
    assert sum(node.op_type == "Sigmoid" for node in model.graph.node) == 2 + written_out   # the embedding's


def test_features_are_half_and_images_come_in_two_parts():
    model = build_model(network(), target="cuda", precision="fp16")
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    of_parts = 0
    for node in model.graph.node:
        if node.op_type == "NhwcConv":
            weight = weights[node.input[1]]
            resamples_an_image = weight.shape[0] == 3 and weight.shape[3] == 1
            assert weight.dtype == (np.float32 if resamples_an_image else np.float16), node.name
            if weight.shape[3] == 8:
                np.testing.assert_array_equal(weight[..., :3], weight[..., 3:6])
                assert not weight[..., 6:].any()
                of_parts += 1
    assert of_parts == 2   # the first convolution and the pyramid's
    outside = [*model.graph.input[:2], model.graph.output[0]]
    assert [(item.name, item.type.tensor_type.elem_type) for item in outside] == [
        (name, onnx.TensorProto.FLOAT) for name in ("x", "sigma", "score")]


def test_an_image_is_read_exactly_in_half_precision():
    """The network's own weights in float16 and what is rounded in between are all that differs at the smallest sigma:
    an image that was rounded would be off by a share of sigma that grows as sigma falls."""
    model = emulated(build_model(network(), target="cuda", precision="fp16"))
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    [first] = [node for node in model.graph.node
               if node.op_type == "Conv" and shapes.get(node.input[1]) == (16, 8, 3, 3)]
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    x = 50 * np.random.default_rng().standard_normal((2, 3, 16, 16)).astype(np.float32)
    [seen] = session.run([first.input[0]], {"x": x, "sigma": np.ones(2, np.float32)})
    centered = 2 * x - 1
    assert (np.abs(seen[:, :3] + seen[:, 3:6] - centered) <= 2.0**-21 * np.abs(centered) + 2.0**-25).all()
    assert np.abs(seen[:, :3] - centered).max() > 1e-3


def test_mixed_keeps_the_images_resolution_in_float32_by_three_products():
    model = build_model(network(), target="cuda", precision="mixed")
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(emulated(model), data_prop=True)
    sizes = {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
             for item in inferred.graph.value_info}
    of_features = {}
    for node in model.graph.node:
        if node.op_type == "NhwcConv" and weights[node.input[1]].dtype == np.float32 and node.input[0] in sizes:
            x = sizes[node.input[0]]
            if x[3] > 8:
                of_features.setdefault(node.output[0].split("/of_parts")[0], []).append(weights[node.input[1]])
                assert x[1:3] == [16, 16]
    assert of_features
    for first, same, rest in of_features.values():
        np.testing.assert_array_equal(first, same)
        assert np.abs(rest).max() <= np.abs(first).max() * 2.0**-11
        np.testing.assert_array_equal(first, first.astype(np.float16))
        np.testing.assert_array_equal(rest, rest.astype(np.float16))


def test_mixed_is_within_2e_3_where_float16_is_not(digits_checkpoint):
    """At the bundled model's smallest noise level: benchmarks/half.py has them all."""
    digits, rng = from_diffusers(digits_checkpoint), np.random.default_rng(0)
    exact = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    sigma = np.full(8, exact.metadata.schedule.sigma_min, np.float32)
    x = sde_onnx.sample(exact, range(8)) + sigma[0] * rng.standard_normal((8, 3, 16, 16), np.float32)
    error = {}
    for precision in ("fp16", "mixed"):
        model = emulated(build_model(digits.network, target="cuda", precision=precision))
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        [score] = session.run(["score"], {"x": x, "sigma": sigma})
        error[precision] = np.linalg.norm(score - exact(x, sigma)) / np.linalg.norm(exact(x, sigma))
    assert error["mixed"] < 2e-3 < error["fp16"]


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_no_node_is_work_for_the_cpu(options):
    """ONNX Runtime gives it what computes on a value's shape, and a session that leaves the CPU no work refuses it."""
    found = {name for _, name in operators(build_model(network(**options), target="cuda", precision="fp16"))}
    assert not found & {"Shape", "Size", "NonZero", "Range", "Loop", "If", "Scan", "Unique", "NonMaxSuppression"}


@pytest.mark.parametrize("options", [NETWORKS["no fir"], NETWORKS["no fir, convolutions"]])
def test_every_convolution_pads_all_sides_alike(options):
    model = build_model(network(**options), target="cuda", precision="fp32")
    found = [(tuple(pads), tuple(onnx.helper.get_node_attr_value(node, "kernel_shape")))
             for node in model.graph.node if node.op_type == "NhwcConv"
             for pads in [next((item.ints for item in node.attribute if item.name == "pads"), ())]]
    assert ((1, 1, 1, 1), (4, 4)) in found
    assert all(len(set(pads)) < 2 for pads, _ in found)


def test_onnx_runtime_takes_the_graph_up_to_its_kernels():
    """Types and shapes are inferred by the operators' own schemas; what is missing on a CPU is the kernel alone."""
    model = build_model(network(), target="cuda", precision="fp16")
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*Could not find an implementation for NhwcConv\(1\)"):
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = {item.name: item.data_type for item in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "NhwcConv"]
    halves = [node for node in convolutions if weights[node.input[1]] == onnx.TensorProto.FLOAT16]
    of_an_image = next(node for node in convolutions if node not in halves)
    of_an_image.input[1] = halves[0].input[1]
    with pytest.raises(Exception, match="bound to different types"):
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_weight_that_float16_does_not_hold_is_refused():
    oracle = network()
    with torch.no_grad():
        oracle.middle0.conv0.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(ConfigError, match="middle0.conv0.weight holds 1e\\+05, float16 ends at 65504"):
        build_model(oracle, target="cuda", precision="fp16")
    build_model(oracle, target="cuda", precision="fp32")


@pytest.mark.parametrize(("node", "shape", "said"), [
    ("Reshape (x, shape)", "N, 8, 32", "score .* has no form for CUDA"),
    ("Reshape (x, shape)", "N, 4, 2, 4, 8", "score .* has no form for CUDA"),
    ("Transpose <perm = [0, 1, 3, 2]> (x)", "N, 4, 8, 8", "has no form for CUDA"),
    ("Tanh (x)", "N, 4, 8, 8", "operator Tanh has no form for CUDA"),
], ids=["other channels", "five axes", "a transposition", "an operator"])
def test_what_has_no_form_is_refused(node, shape, said):
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[N, 4, 8, 8] x, float[N] sigma, int64[K] shape) => (float[{shape}] score) {{ score = {node} }}""")
    with pytest.raises(ConfigError, match=said):
        write_for_cuda(model, "fp32")


def test_the_command_and_what_other_providers_say(checkpoint16, tmp_path):
    path = tmp_path / "m.onnx"
    made = CliRunner().invoke(main, ["export", str(checkpoint16), "-o", str(path), "--target", "cuda",
                                     "--precision", "fp16"])
    assert made.exit_code == 0, made.output
    assert "emulated on the CPU" in made.output
    assert "fp16 for cuda" in made.output
    metadata = sde_onnx.read_metadata(path)
    assert (metadata.target, metadata.precision) == ("cuda", "fp16")
    with pytest.raises(ProviderError, match="was exported for cuda and not for cpu: export it without --target"):
        sde_onnx.load(path, "cpu")
    with pytest.raises(InputError, match="computes in fp16, not in fp32"):
        sde_onnx.load(path, precision="fp32")
    if "cuda" not in usable_providers():
        result = CliRunner().invoke(main, ["sample", str(path), "--seeds", "0", "-o", str(tmp_path / "x.png")])
        assert result.exit_code == 1
        assert "m.onnx was exported for cuda: provider cuda cannot run here" in result.output
        assert result.output.count("\n") == 1
    usage = CliRunner().invoke(main, ["export", str(checkpoint16), "-o", str(tmp_path / "n.onnx"), "--precision",
                                      "fp16"])
    assert usage.exit_code == 2
    assert "--precision fp16 needs --target cuda" in usage.output


def test_targets_and_precisions_are_named(checkpoint16, tmp_path):
    checkpoint = from_diffusers(checkpoint16)
    with pytest.raises(ConfigError, match="target 'tpu' in precision 'fp32' is unknown, expected one of any: fp32; "
                                          "cpu: fp32; cuda: fp32, fp16, mixed"):
        export(checkpoint, tmp_path / "m.onnx", target="tpu")
    with pytest.raises(ConfigError, match="precision 'fp16' is unknown"):
        export(checkpoint, tmp_path / "m.onnx", precision="fp16")


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "most"), [("fp32", 2e-5), ("fp16", 2e-3), ("mixed", 2e-3)])
def test_the_graph_is_what_is_emulated(precision, most, digits_checkpoint, tmp_path):
    """On the device, at every sigma of a schedule."""
    digits = from_diffusers(digits_checkpoint)
    export(digits, tmp_path / "m.onnx", target="cuda", precision=precision)
    fast, slow = sde_onnx.load(tmp_path / "m.onnx"), sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    rng = np.random.default_rng(0)
    for sigma in np.geomspace(digits.schedule.sigma_min, digits.schedule.sigma_max, 40).astype(np.float32):
        x = rng.random((2, 3, 16, 16), np.float32) + sigma * rng.standard_normal((2, 3, 16, 16), np.float32)
        sigmas = np.full(2, sigma)
        expected = slow(x, sigmas)
        assert np.linalg.norm(fast(x, sigmas) - expected) / np.linalg.norm(expected) <= most
