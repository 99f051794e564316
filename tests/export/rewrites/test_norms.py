import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from sde_onnx.export import to_onnx
from sde_onnx.export.network.layers import group_norm
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig
from sde_onnx.export.rewrites import norms
from sde_onnx.export.rewrites.concatenations import split_concatenations

from random_unets import randomize


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = group_norm(16, groups=None, eps=1e-6)

    def forward(self, x, shift=None):
        return self.norm(x, shift)


def write(layer, *inputs):
    """The layer as an ONNX model with its norms marked and written out."""
    norms.mark_norms(layer.eval())
    dynamic = tuple({0: torch.export.Dim("N")} for _ in inputs)
    model = torch.onnx.export(layer, inputs, dynamo=True, opset_version=20, dynamic_shapes=dynamic,
                              verbose=False).model_proto
    norms.write_norms(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, *inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return session.run(None, {name: item.numpy() for name, item in zip(names, inputs, strict=True)})[0]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("largest", "longest"), [(norms.LARGEST_PLAIN_GROUP, 16), (0, 16), (0, 240)])
def test_a_norm_equals_float64(largest, longest, shifted, rng, monkeypatch):
    """Images of 12 x 20 pixels: 15 rows a channel, or one."""
    monkeypatch.setattr(norms, "LARGEST_PLAIN_GROUP", largest)
    monkeypatch.setattr(norms, "LONGEST_SUM", longest)
    layer = Norm()
    with torch.no_grad():
        layer.norm.weight.copy_(torch.tensor(rng.normal(1, 0.3, 16)))
        layer.norm.bias.copy_(torch.tensor(rng.normal(0, 0.3, 16)))
    weight, bias = layer.norm.weight.detach().double(), layer.norm.bias.detach().double()
    model = None
    for ratio in (0, 1, 10):   # of a group's mean to its deviation
        for batch in (2, 3):
            inputs = [torch.tensor(rng.normal(2 * ratio, 2, (batch, 16, 12, 20)), dtype=torch.float32)]
            moved = inputs[0].double()
            if shifted:
                inputs.append(torch.tensor(rng.normal(0, 3, (batch, 16)), dtype=torch.float32))
                moved = moved + inputs[1].double()[:, :, None, None]
            model = model or write(layer, *inputs)
            expected = F.group_norm(moved, 4, weight, bias, 1e-6).numpy()
            error = np.linalg.norm(run(model, *inputs) - expected) / np.linalg.norm(expected)
            assert error < 4e-7 * (1 + ratio**2)   # the rounding of the sums: see the module's docstring


def test_a_constant_image_is_no_division_by_zero():
    x = torch.full((2, 16, 64, 64), 0.1)
    assert np.abs(run(write(Norm(), x), x)).max() < 0.1   # 1e-6 in the root leaves nothing but rounding


@pytest.mark.parametrize(("largest", "is_plain"), [(4 * 8 * 8, True), (4 * 8 * 8 - 1, False)])
def test_a_group_of_the_largest_size_is_plain(largest, is_plain, monkeypatch):
    monkeypatch.setattr(norms, "LARGEST_PLAIN_GROUP", largest)
    kinds = {node.op_type for node in write(Norm(), torch.ones(2, 16, 8, 8)).graph.node}
    assert ("InstanceNormalization" in kinds, "Sqrt" in kinds) == (is_plain, not is_plain)


def operators(network):
    return collections.Counter(node.op_type for node in to_onnx.build_model(network).graph.node)


def test_large_norms_leave_no_kernel_of_one_thread(monkeypatch):
    network = NCSNpp(NCSNppConfig(16, (16, 32), num_res_blocks=1, attn_resolutions=(8,)))
    randomize(network, 0)
    small = operators(network)
    monkeypatch.setattr(norms, "LARGEST_PLAIN_GROUP", 0)
    large = operators(network)
    count = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    assert small["InstanceNormalization"] == large["Sqrt"] == count
    assert large["InstanceNormalization"] == small["Sqrt"] == 0


def test_moments_are_taken_once_for_each_tensor(monkeypatch, rng):
    """A tensor of two norms, and one that is part of a concatenation."""
    monkeypatch.setattr(norms, "LARGEST_PLAIN_GROUP", 0)

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (group_norm(channels, groups=3, eps=1e-6) for channels in (6, 18))

        def forward(self, x, y):
            return self.second(torch.cat([self.first(x), x, y], dim=1))

    layer = Twice().eval()
    x, y = (torch.tensor(rng.normal(1, 2, (2, 6, 8, 8)), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        expected = layer(x, y).numpy()
    model = write(layer, x, y)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    # Of x, y and the first result: a mean of pixels and one of their squares; and of groups, two each.
    assert kinds["ReduceMean"] == 3 * 2 + 2 * 2
    np.testing.assert_allclose(run(model, x, y), expected, atol=1e-5)


def test_a_large_concatenation_is_never_made(monkeypatch, rng):
    """Its norm reads the parts, and so do convolutions, also after a SiLU; a small one is made once for all."""
    monkeypatch.setattr(norms, "LARGEST_PLAIN_GROUP", 0)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = group_norm(18, groups=3, eps=1e-6)   # the second group is of two parts
            self.conv = torch.nn.Conv2d(18, 4, 3, padding=1)
            self.shortcut = torch.nn.Conv2d(18, 4, 1)

        def forward(self, x, y, z):
            both = torch.cat([x, y, z], dim=1)
            return self.conv(F.silu(self.norm(both))) + self.shortcut(both)

    layer = Decoder().eval()
    randomize(layer, 1)
    parts = [torch.tensor(rng.normal(mean, 2, (2, channels, 8, 8)), dtype=torch.float32)
             for mean, channels in ((1, 7), (-3, 9), (0, 2))]
    with torch.no_grad():
        expected = layer(*parts).numpy()
    for longest, convolutions, concatenations in ((64, 2, ["cat"]), (32, 6, [])):
        monkeypatch.setattr(norms, "LONGEST_SUM", longest)
        model = write(layer, *parts)
        split_concatenations(model)
        onnx.checker.check_model(model, full_check=True)
        assert sum(node.op_type == "Conv" for node in model.graph.node) == convolutions
        moments = {name for node in model.graph.node if node.op_type == "Reshape" for name in node.input}
        assert [node.output[0] for node in model.graph.node
                if node.op_type == "Concat" and node.output[0] not in moments] == concatenations
        np.testing.assert_allclose(run(model, *parts), expected, rtol=1e-4, atol=1e-4)
