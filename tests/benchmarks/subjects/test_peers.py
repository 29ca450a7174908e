"""Peers have the published number of parameters, take any size, agree with their ONNX, and compute with normal numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.subjects.peers import PEERS, export_peer, published

EVERY = pytest.mark.parametrize("name", list(PEERS))


@EVERY
def test_as_many_parameters_as_published(name: str) -> None:
    """The deployed form counts: SPAN's reparameterized convolutions are single 3×3 convolutions."""
    count = sum(parameter.numel() for parameter in PEERS[name].build().parameters())
    assert count / 1e6 == pytest.approx(PEERS[name].params_m, rel=0.003)


@EVERY
@pytest.mark.parametrize("size", [(15, 15), (17, 31), (33, 20)])
def test_four_times_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        sr = PEERS[name].build()(torch.rand(2, 3, *size))
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])


@EVERY
def test_onnx_computes_what_torch_does_at_other_sizes(name: str, tmp_path: Path) -> None:
    target = tmp_path / "peer.onnx"
    export_peer(name, target)
    assert {entry.domain: entry.version for entry in onnx.load(target).opset_import} == {"": 17}
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("lr", ["batch", 3, "height", "width"], "tensor(float)")
    ]
    network = PEERS[name].build()
    for shape in ((1, 3, 21, 34), (2, 3, 48, 15)):
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        (sr,) = session.run(["sr"], {"lr": lr.numpy()})
        with torch.no_grad():
            expected = network(lr).numpy()
        assert sr.shape == expected.shape
        np.testing.assert_allclose(sr, expected, rtol=0, atol=1e-4)


@EVERY
def test_nothing_overflows_and_nothing_is_subnormal(name: str) -> None:
    network = PEERS[name].build()
    tiny = torch.finfo(torch.float32).tiny
    seen: list[torch.Tensor] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    for module in network.modules():  # the input of the network and its first convolution is the picture, which may be black
        module.register_forward_hook(
            lambda module, inputs, output: seen.extend([output, *(() if module in (network, first) else inputs)])
        )
    noise = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40)
    spreads = []
    with torch.no_grad():
        for lr in (noise, ramp, torch.zeros_like(noise), torch.ones_like(noise)):
            spreads.append(float(network(lr).std()))
    seen.extend(network.parameters())
    assert len(seen) > 8 * sum(isinstance(module, nn.Conv2d) for module in network.modules())
    for tensor in seen:
        size = tensor.detach().abs()
        assert size.max() < 1e3
        assert not ((size > 0) & (size < tiny)).any()
        if size.shape[-1] > 1:  # a gate's few squeezed channels may all be cut off by their ReLU
            assert size.max() > 1e-3, "activations died out"
    assert 0.1 < spreads[0] < 10


def test_weights_are_the_same_each_time_and_the_callers_draw_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (PEERS["span-s"].build() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_published_figures_are_rows_of_a_report() -> None:
    report = json.loads(json.dumps(published(["imdn", "rlfn"])))
    assert [row["model"] for row in report["peers"]] == ["imdn", "rlfn"]
    for row in report["peers"]:
        assert (row["source"], set(row["psnr_y"])) == ("published", {"Set5", "Set14", "B100"})
        assert "20" in row["note"], "the note names a venue with its year"


def test_what_is_not_confirmed_is_not_published() -> None:
    assert published(["e-rfdn"]) == {"peers": []}
    for row in published(PEERS)["peers"]:
        assert all(27 < psnr < 33 for psnr in row["psnr_y"].values())


def test_an_unknown_peer_is_named_with_the_known_ones(tmp_path: Path) -> None:
    for call in (lambda: export_peer("edsr", tmp_path / "x.onnx"), lambda: published(["imdn", "edsr"])):
        with pytest.raises(BenchmarkError, match=r"edsr .*span, .*imdn"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_list_of_peers_needs_no_torch() -> None:
    code = "import sys, rdsr.benchmarks.subjects.peers as p; p.published(p.PEERS); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
