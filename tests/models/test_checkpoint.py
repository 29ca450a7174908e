"""Checkpoints: our own, other people's, and hostile ones."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn

from rdsr.models.checkpoint import read_checkpoint, save_checkpoint
from rdsr.models.errors import CheckpointError, UnsupportedModelError
from rdsr.models.int8.levels import weight_scales
from rdsr.models.rdsr import RDSR
from rdsr.models.rdsr.quantized import QuantizedDecoder
from rdsr.models.registry import load_model
from rdsr.tests.conftest import CONFIG, random_network


def outputs_equal(a: RDSR, b: RDSR) -> bool:
    lr, noise = torch.rand(1, 3, 9, 10), torch.randn(1, CONFIG.latent_size)
    with torch.no_grad():
        return torch.equal(a(lr, noise), b(lr, noise))


def test_own_format_round_trip(checkpoint: Path, network: RDSR) -> None:
    loaded = load_model(checkpoint)
    assert loaded.arch == "rdsr"
    assert loaded.config == CONFIG
    assert loaded.notes == {"stage": "test"}
    assert outputs_equal(loaded.network, network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"params": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"params": {k: torch.zeros_like(v) for k, v in s.items()}, "params_ema": s},
        lambda s: {"ema": {f"_orig_mod.module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 1.0}},
        lambda s: {k: v.half().float() if v.ndim == 4 else v for k, v in s.items()},
    ],
    ids=["plain", "params", "module", "ema-first", "compiled-ema", "rounded"],
)
def test_pytorch_files(tmp_path: Path, wrap: object) -> None:
    network = random_network(seed=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    path = tmp_path / "net.pth"
    torch.save(wrap(network.state_dict()), path)
    assert outputs_equal(load_model(path).network, network)


def test_foreign_keys_come_in_through_a_key_map(tmp_path: Path, network: RDSR) -> None:
    foreign = {
        key.replace("condition_encoder.", "cpen.").replace("decoder.body.", "net_g.blocks_"): value
        for key, value in network.state_dict().items()
    }
    path, key_map = tmp_path / "foreign.safetensors", tmp_path / "map.json"
    save_file(foreign, path)
    key_map.write_text(json.dumps({r"cpen\.(.*)": r"condition_encoder.\1", r"net_g\.blocks_(.*)": r"decoder.body.\1"}))
    with pytest.raises(UnsupportedModelError, match="key-map"):
        load_model(path)
    assert outputs_equal(load_model(path, key_map=key_map).network, network)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[1]", "object"),
        ("{", "JSON"),
        ('{"(": "x"}', "bad pattern"),
        ('{"a{99999999999}": "x"}', "bad pattern"),
        (json.dumps({"(" * 3000 + ")" * 3000: "x"}), "bad pattern"),
        (json.dumps({"a": "\\" + "9" * 5000}), "replacement of 5001"),
        (json.dumps({"(a)" * 400: "\\400"}), "group 400"),
        ('{"decoder.*": "one"}', "both"),
        (r'{"a(.)": "\\2"}', "group 2"),
        (r'{"a(.)": "\\q"}', "bad replacement"),
        (r'{"a(.)": "\\g<x>"}', "bad replacement"),
    ],
)
def test_bad_key_maps_are_named(tmp_path: Path, checkpoint: Path, content: str, word: str) -> None:
    key_map = tmp_path / "map.json"
    key_map.write_text(content)
    with pytest.raises(CheckpointError, match=word):
        load_model(checkpoint, key_map=key_map)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)  # type: ignore[attr-defined]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    bomb = Bomb()
    bomb.path = tmp_path / "ran"  # type: ignore[attr-defined]
    path = tmp_path / "evil.pth"
    torch.save({"params": bomb}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="refused"):
        load_model(path)
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [20, 1000, -100])
def test_truncated_files(tmp_path: Path, network: RDSR, kind: str, keep: int) -> None:
    path = tmp_path / f"cut.{kind}"
    save_file(network.state_dict(), path) if kind == "safetensors" else torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"damaged or truncated"):
        load_model(path)


def test_missing_empty_text_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(tmp_path / "none.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="empty"):
        load_model(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("These are not the weights you are looking for.\n" * 5)
    with pytest.raises(CheckpointError, match="neither"):
        load_model(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="folder"):
        load_model(tmp_path)


def test_unknown_network_names_what_is_known(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"conv\.weight.*rdsr"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match="'nonsense'"):
        load_model(tmp_path / "other.safetensors", arch="nonsense")


@pytest.mark.parametrize(
    "key",
    [
        "decoder.head.weight",
        "decoder.body.2.weight",
        "denoiser.output.bias",
        "decoder.tail.weight",
        "condition_encoder.mlp.0.weight",
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_missing_and_misshapen_tensors_are_named(tmp_path: Path, checkpoint: Path, key: str, own: bool) -> None:
    tensors, metadata = read_checkpoint(checkpoint)
    path = tmp_path / "broken.safetensors"
    save_file({k: v for k, v in tensors.items() if k != key}, path, metadata=metadata if own else None)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        load_model(path)
    value = tensors[key]
    save_file(tensors | {key: torch.zeros(*value.shape[:-1], value.shape[-1] + 1)}, path, metadata=metadata if own else None)
    with pytest.raises(CheckpointError, match=r"shape|expected"):
        load_model(path)


def test_nan_extra_and_integer_tensors_are_named(tmp_path: Path, checkpoint: Path) -> None:
    tensors, metadata = read_checkpoint(checkpoint)
    path = tmp_path / "broken.safetensors"
    for changed, word in (
        ({"decoder.head.bias": torch.full_like(tensors["decoder.head.bias"], torch.nan)}, "NaN"),
        ({"surprise": torch.zeros(2)}, "surprise"),
        ({"decoder.head.bias": tensors["decoder.head.bias"].int()}, "floating"),
        ({"decoder.head.bias": tensors["decoder.head.bias"].to(torch.float8_e4m3fn)}, "floating"),
    ):
        save_file(tensors | changed, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=word):
            load_model(path)


def test_stage1_checkpoint_says_what_to_do(tmp_path: Path, network: RDSR) -> None:
    part = {k: v for k, v in network.state_dict().items() if k.startswith(("lpe.", "decoder."))}
    save_file(part, tmp_path / "stage1.safetensors")
    with pytest.raises(CheckpointError, match="stage2"):
        load_model(tmp_path / "stage1.safetensors")


def test_inference_only_checkpoint_without_lpe_loads(tmp_path: Path, network: RDSR) -> None:
    fused = network.fuse()
    save_file({k: v.contiguous() for k, v in fused.state_dict().items()}, tmp_path / "fused.safetensors")
    loaded = load_model(tmp_path / "fused.safetensors")
    assert loaded.network.lpe is None
    assert outputs_equal(loaded.network.fuse(), fused)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"notes": "{"}, "notes"),
        ({"notes": "[1]"}, "notes"),
        ({"config": "{"}, "config"),
        ({"config": "[]"}, "config"),
        ({"config": '{"width": 8}'}, "missing field depth"),
        (
            {"config": json.dumps(CONFIG.to_dict() | {"width": 1024, "depth": 256})},
            "missing tensor",
        ),  # before any memory is taken
        ({"arch": "other"}, "'other'"),
    ],
)
def test_metadata_is_not_trusted(tmp_path: Path, checkpoint: Path, changes: dict[str, str], word: str) -> None:
    tensors, metadata = read_checkpoint(checkpoint)
    save_file(tensors, tmp_path / "net.safetensors", metadata=metadata | changes)
    with pytest.raises(CheckpointError, match=word):
        load_model(tmp_path / "net.safetensors")


def test_averaged_models_and_empty_ema(tmp_path: Path, network: RDSR) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for name, content in (("a", {"ema": averaged.state_dict()}), ("b", {"params_ema": {}, "params": network.state_dict()})):
        torch.save(content, tmp_path / f"{name}.pth")
        assert outputs_equal(load_model(tmp_path / f"{name}.pth").network, network)


def test_fused_networks_save_and_load(tmp_path: Path, network: RDSR) -> None:
    fused = network.fuse()
    save_checkpoint(tmp_path / "fused.safetensors", fused.state_dict(), "rdsr", fused.config.to_dict())
    assert outputs_equal(load_model(tmp_path / "fused.safetensors").network.fuse(), network.fuse())


def test_compact_files_hold_levels_and_halves_and_load_as_the_same_network(tmp_path: Path) -> None:
    network = random_network(dataclasses.replace(CONFIG, lpe_width=64))
    network.quantized = QuantizedDecoder(network.config, floats=[1])
    for conv in network.quantized.layers():
        nn.init.normal_(conv.weight, std=0.05)
        if conv.log_weight_scale is not None:
            conv.log_weight_scale.data.copy_(weight_scales(conv.weight).log() - 0.5)  # so that some levels clip
    network.quantized.snap()
    save_checkpoint(
        tmp_path / "net.safetensors", network.state_dict(), "rdsr", network.config.to_dict(),
        compact=True, training_only=network.training_only(),
    )  # fmt: skip
    stored = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert {key for key, value in stored.items() if value.dtype == torch.int8} == {
        f"quantized.convs.{i}.weight" for i, conv in enumerate(network.quantized.layers()) if conv.quantized
    }
    assert stored["quantized.convs.1.weight"].dtype == torch.float32
    large = {key: value.dtype for key, value in stored.items() if value.numel() >= 4096}
    assert {dtype for key, dtype in large.items() if not key.startswith("lpe.")} == {torch.float16, torch.int8}
    assert {dtype for key, dtype in large.items() if key.startswith("lpe.")} == {torch.bfloat16}, "only training reads it"
    loaded = load_model(tmp_path / "net.safetensors").network
    assert isinstance(loaded, RDSR)
    assert loaded.quantized is not None
    x, z = torch.rand(1, 3, 12, 10), torch.zeros(1, network.config.latent_size)
    assert torch.equal(loaded.quantized(x, z), network.quantized(x, z))
    for (name, parameter), value in zip(loaded.named_parameters(), network.parameters(), strict=True):
        assert torch.allclose(parameter, value, rtol=4e-3 if name.startswith("lpe.") else 1e-3, atol=1e-7), name
    stored["quantized.convs.0.log_weight_scale"] = torch.zeros(7, 1, 1, 1)
    save_file(stored, tmp_path / "bad.safetensors")
    for read in (load_model, read_checkpoint):
        with pytest.raises(CheckpointError, match=r"tensor quantized.convs.0.log_weight_scale (has shape|does not fit)"):
            read(tmp_path / "bad.safetensors")
    del stored["quantized.convs.0.log_weight_scale"]
    save_file(stored, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor quantized\.convs\.0\."):
        load_model(tmp_path / "bad.safetensors")


def test_steps_can_be_overridden(checkpoint: Path) -> None:
    assert len(load_model(checkpoint, steps=7).network.betas) == 7


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Exports are cached by the bytes of the checkpoint."""
    tensors = {"b": torch.arange(5.0), "a": torch.ones(2, 3), "c": torch.tensor(1.0)}
    contents = set()
    for index in range(8):  # four keys in random order: eight times the same one in 24**7 runs
        save_checkpoint(tmp_path / f"{index}.safetensors", tensors, "rdsr", {"width": 8, "depth": 2}, {"stage": "test"})
        contents.add((tmp_path / f"{index}.safetensors").read_bytes())
    (content,) = contents
    loaded = safetensors.torch.load(content)
    assert {key: value.tolist() for key, value in loaded.items()} == {key: value.tolist() for key, value in tensors.items()}
