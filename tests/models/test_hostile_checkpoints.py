"""Checkpoints made to do harm are refused in one sentence, from their headers, before they take time or memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from rdsr.models.checkpoint import LONGEST_NAME, MOST_TENSORS, read_checkpoint, read_key_map
from rdsr.models.diffir import DiffIR
from rdsr.models.errors import CheckpointError
from rdsr.models.rdsr import RDSR
from rdsr.models.registry import load_model, resolve_checkpoint
from rdsr.tests.conftest import DIFFIR_CONFIG, random_network
from rdsr.tests.fuzz import checkpoints as fuzz


def refused(path: Path, words: str) -> str:
    """The sentence with which a checkpoint is refused: soon, without much memory, and in one line."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path)
    assert time.monotonic() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "KiB"
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 1500
    return sentence


def saved(path: Path, state: object, *, legacy: bool = False) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def edited(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The file with its members changed; None leaves one out."""
    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    path.write_bytes(result.getvalue())
    return path


def test_compressed_members_are_refused_unread(tmp_path: Path, network: RDSR) -> None:
    path = saved(tmp_path / "net.pth", network.state_dict())
    zeros = bytes(2**28)
    edited(path, lambda name, content: zeros if name.endswith("data/0") else content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, "compressed members")


@pytest.mark.parametrize("field", [20, 24])
def test_a_directory_that_claims_more_than_the_file_has_is_refused(tmp_path: Path, network: RDSR, field: int) -> None:
    content = bytearray(saved(tmp_path / "net.pth", network.state_dict()).read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(content)):
        for at in (20, 24) if field == 24 else (field,):
            content[entry.start() + at : entry.start() + at + 4] = struct.pack("<I", 2**31)
    (tmp_path / "net.pth").write_bytes(content)
    refused(tmp_path / "net.pth", "claim more bytes|compressed")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_are_larger_than_their_storage_are_refused(tmp_path: Path, network: RDSR, legacy: bool) -> None:
    state = network.state_dict()
    for value, words in (
        (torch.zeros(1).expand(2**32), "expanded"),
        (torch.zeros(1, 12).expand(2**28, 12), "expanded"),
        (torch.zeros(4096).as_strided((2048, 2048), (1, 1)), "expanded"),
    ):
        path = saved(tmp_path / "net.pth", state | {"decoder.head.weight": value}, legacy=legacy)
        assert path.stat().st_size < 2**19
        refused(path, words)


@pytest.mark.parametrize("legacy", [False, True])
def test_many_names_for_one_tensor_are_refused(tmp_path: Path, legacy: bool) -> None:
    one = torch.zeros(2**16)
    path = saved(tmp_path / "net.pth", {f"decoder.body.{i}.weight": one for i in range(1000)}, legacy=legacy)
    refused(path, "would take 262144000 bytes")


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, network: RDSR) -> None:
    """Also through offset, stride or a storage that is shorter than the pickle says."""

    def with_size(name: str, content: bytes) -> bytes:
        # 48 = 12 channels × 4: the size of a bias becomes larger than its storage
        return content.replace(b"K\x0c\x85", b"M\xff\xff\x85") if name.endswith("data.pkl") else content

    refused(edited(saved(tmp_path / "a.pth", network.state_dict()), with_size), "beyond its storage")
    short = edited(
        saved(tmp_path / "b.pth", network.state_dict()), lambda name, data: data[:-4] if "/data/" in name else data
    )
    refused(short, "storage is missing, or shorter")
    gone = edited(saved(tmp_path / "c.pth", network.state_dict()), lambda name, data: None if "/data/3" in name else data)
    refused(gone, "storage is missing, or shorter")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_too_many_and_too_long_names_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "many"
    for state, words in (
        (
            {f"decoder.body.{i}.weight": torch.zeros(1) for i in range(MOST_TENSORS + 1)},
            "10001 tensors|operations|directory",
        ),
        ({"x" * (LONGEST_NAME + 1): torch.zeros(1)}, "501 characters"),
        ({"decoder.head.weight": torch.zeros(1), "decoder.body." + "9" * 400 + ".weight": torch.zeros(1)}, "."),
    ):
        save_file(state, path) if kind == "safetensors" else saved(path, state, legacy=kind == "legacy")
        refused(path, words)


def test_a_hundred_thousand_names_are_refused_soon(tmp_path: Path) -> None:
    header = {f"k{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(tmp_path / "a.safetensors", "more than")
    one = torch.zeros(1)
    refused(saved(tmp_path / "b.pth", {f"k{i}": one for i in range(100_000)}), "more than")


@pytest.mark.parametrize(
    ("length", "header", "words"),
    [
        (2**63 - 1, "{}", "header has"),
        (2**27, "{}", "header has"),
        (None, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        (None, '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', "twice"),
        (None, '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 40]}}', "outside the file"),
        (None, '{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 8]}}', "does not fit its range"),
        (None, '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}', "whole numbers"),
        (None, '{"a": {"dtype": "F32", "shape": [1e0], "data_offsets": [0, 8]}}', "whole numbers"),
        (None, '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "overlap, or leave gaps"),
        (None, '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "do not end where"),
        (None, '{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', "match no known|expected dense"),
        (None, '{"a": 3}', "no tensor"),
        (None, '{"__metadata__": {"a": 1}}', "metadata"),
        (None, '{"__metadata__": []}', "metadata"),
        (None, '{"a": \xff}', "damaged"),
    ],
)
def test_headers_of_safetensors_are_not_trusted(tmp_path: Path, length: int | None, header: str, words: str) -> None:
    text = header.encode("latin-1")
    path = tmp_path / "net.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(8))
    refused(path, words)


def test_weights_beyond_float32_are_named(tmp_path: Path, network: RDSR) -> None:
    """They would become infinite; nothing is wrong with float64 itself."""
    state = {key: value.double() for key, value in network.state_dict().items()}
    assert load_model(saved(tmp_path / "fine.pth", state)).arch == "rdsr"
    for kind in ("pth", "safetensors"):
        path, large = tmp_path / f"net.{kind}", state | {"decoder.tail.bias": state["decoder.tail.bias"] + 1e39}
        save_file(large, path) if kind == "safetensors" else saved(path, large)
        refused(path, "decoder.tail.bias holds values beyond the range of float32")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_every_other_kind_are_named(tmp_path: Path, network: RDSR) -> None:
    state, key = network.state_dict(), "decoder.head.bias"
    for value, words in (
        (state[key].to_sparse(), "a sparse tensor"),
        (torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8), "a quantized tensor"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "a nested tensor"),
        (state[key].to("meta"), "a meta tensor"),
        (state[key].to(torch.complex64), "complex64"),
        (state[key].bool(), "bool"),
        (state[key].to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ):
        path = saved(tmp_path / "net.pth", state | {key: value})
        assert key in refused(path, words)


@pytest.mark.parametrize("value", [3, None, "text", [1.0], {"a": 1}, (torch.zeros(3),)])
def test_values_that_are_no_tensors_do_not_count(tmp_path: Path, network: RDSR, value: object) -> None:
    state = dict(network.state_dict())
    assert load_model(saved(tmp_path / "more.pth", state | {"epoch": value})).arch == "rdsr"
    refused(saved(tmp_path / "net.pth", state | {"decoder.head.bias": value}), "decoder.head.bias")
    with pytest.raises(CheckpointError, match=r"not a state dict|no state dict"):
        load_model(saved(tmp_path / "alone.pth", value))


@pytest.mark.parametrize("arch", ["rdsr", "diffir"])
def test_a_tensor_of_any_wrong_rank_is_named(tmp_path: Path, network: RDSR, arch: str) -> None:
    model = network if arch == "rdsr" else DiffIR(DIFFIR_CONFIG)
    state = dict(model.state_dict())
    if arch == "diffir":
        state["diffusion.betas"] = torch.tensor(model.schedule.betas)
    for key, value in state.items():
        for rank in {0, 1, 2, 5} - {value.ndim}:
            save_file(state | {key: torch.full([1] * rank, 0.5)}, tmp_path / "net.safetensors")
            refused(tmp_path / "net.safetensors", re.escape(key.rpartition(".")[0]) + r"|sizes do not fit|no part of")


def test_pipes_devices_and_strange_names_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("a" * 5000), "name too long"),
        (Path("a\0b"), "null character"),
        (tmp_path / "pipe" / "net.pth", "Not a directory"),
    ):
        refused(path, words)
        refused(resolve_checkpoint(str(path)), words)
        with pytest.raises(CheckpointError, match=words):
            read_key_map(path)
    (tmp_path / "map.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="JSON"):
        read_key_map(tmp_path / "map.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "[" * 100_000},
        {"config": json.dumps({"width": "x" * 100_000})},
        {"config": json.dumps({"x" * 100_000: 1})},
        {"config": '{"width": 1e999}'},
        {"config": '{"width": ' + "9" * 5000 + "}"},
        {"notes": '{"a": ' * 50_000},
        {"arch": "x" * 100_000},
        {"anything": "x" * 2**21},
    ],
)
def test_metadata_that_is_long_or_deep_ends_in_a_short_sentence(
    tmp_path: Path, checkpoint: Path, changes: dict[str, str]
) -> None:
    tensors, metadata = read_checkpoint(checkpoint)
    save_file(tensors, tmp_path / "net.safetensors", metadata=metadata | changes)
    refused(tmp_path / "net.safetensors", ".")


@pytest.mark.parametrize(
    "config", [{"num_blocks": [10**9] * 4}, {"heads": [2**40] * 4}, {"ffn_hidden": [10**9] * 5}, {"dim": 2**40}]
)
def test_sizes_in_metadata_build_no_giant(tmp_path: Path, config: dict[str, object]) -> None:
    metadata = {"arch": "diffir", "config": json.dumps(DIFFIR_CONFIG.to_dict() | config)}
    save_file(DiffIR(DIFFIR_CONFIG).state_dict(), tmp_path / "net.safetensors", metadata=metadata)
    refused(tmp_path / "net.safetensors", next(iter(config)))


class Named:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_calls_in_a_pickle_are_not_made(tmp_path: Path, network: RDSR, legacy: bool) -> None:
    """A harmless-looking one would take memory: `bytearray` of a size. It is allowed, and nothing happens."""
    giant = Named(bytearray, 2**50)
    assert load_model(saved(tmp_path / "a.pth", {"params": network.state_dict(), "x": giant}, legacy=legacy)).arch == "rdsr"
    for function in (eval, os.system, getattr, __import__, open):
        refused(saved(tmp_path / "b.pth", {"x": Named(function, "1")}, legacy=legacy), "refused")


def test_deep_pickles_do_not_crash(tmp_path: Path) -> None:
    """A tuple nested 200,000 deep, as a key: to hash it would overflow the stack of the interpreter."""
    path = saved(tmp_path / "net.pth", {"a": torch.zeros(1)})
    deep = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
    refused(edited(path, lambda name, content: deep if name.endswith("data.pkl") else content), "no state dict")
    wide = b"\x80\x02}" + b"r\xff\xff\xff\x7f" + b"X\xff\xff\xff\x7f."
    refused(edited(path, lambda name, content: wide if name.endswith("data.pkl") else content), "damaged")
    dictionary: dict[str, object] = {"a": torch.zeros(1)}
    for _ in range(40):
        dictionary = dict.fromkeys(map(str, range(50)), dictionary)
    refused(saved(path, dictionary), "no state dict")


def test_a_torchscript_archive_says_what_to_do(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "TorchScript")


def test_files_of_every_protocol_and_of_shared_and_cut_tensors_load(tmp_path: Path) -> None:
    """What honest files hold: views, transposed and shared tensors, parameters, other protocols, halves."""
    network = random_network(seed=5)
    state = dict(network.state_dict())
    odd = {
        key: value.T.contiguous().T if value.ndim == 2 else torch.cat([value, value])[: len(value)] if value.ndim else value
        for key, value in state.items()
    }
    for content, options in (
        (odd, {}),
        ({key: torch.nn.Parameter(value) for key, value in state.items()}, {}),
        (state, {"pickle_protocol": 4}),
        (state, {"pickle_protocol": 5}),
        (state, {"_use_new_zipfile_serialization": False}),
        (network.state_dict(), {"pickle_module": pickle}),
        ({"a": {"state_dict": 1}, "ema": {"module." + key: value for key, value in state.items()}, "n": {1: {2}}}, {}),
    ):
        torch.save(content, tmp_path / "net.pth", **options)
        tensors, _ = read_checkpoint(tmp_path / "net.pth")
        assert tensors.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in tensors.items())


def test_our_reader_of_safetensors_agrees_with_the_library(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    state = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    state |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    (tmp_path / "a.safetensors").write_bytes(save(state, metadata={"a": "b"}))
    tensors, metadata = read_checkpoint(tmp_path / "a.safetensors")
    assert metadata == {"a": "b"}
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


def test_two_hundred_mutations() -> None:
    """The fuzzer, for a moment: whatever happens to a file, it loads or is refused."""
    assert all(fuzz.attempt(content) == "accepted" for content in fuzz.seeds().values())
    said = {fuzz.attempt(fuzz.mutated(np.random.default_rng([7, number]))[1]) for number in range(200)}
    assert said <= {"accepted", "refused: CheckpointError", "refused: UnsupportedModelError"}


def test_archives_of_early_pytorch_are_read(tmp_path: Path, network: RDSR) -> None:
    """They have no byteorder member; zipfile and our own reads share one position in the file."""
    state = {f"{part}.{'x' * 60}.{n}": torch.full((3,), float(n)) for part in "ab" for n in range(100)} | {
        key: value.clone() for key, value in network.state_dict().items()
    }
    path = saved(tmp_path / "net.pth", state)
    before = read_checkpoint(path)[0]
    edited(path, lambda name, content: content if "data" in name.split("/")[1] else None)
    after = read_checkpoint(path)[0]
    assert before.keys() == after.keys() == state.keys()
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_one_list_that_becomes_a_mapping_again_and_again_is_refused(tmp_path: Path, network: RDSR) -> None:
    pairs = b"(" + b"".join(b"(X\x01\x00\x00\x00aK\x00t" for _ in range(20_000)) + b"l"
    copies = b"ccollections\nOrderedDict\nq\x01" + pairs + b"\x85q\x02" + b"h\x01h\x02R0" * 20_000
    path = saved(tmp_path / "net.pth", network.state_dict())
    edited(path, lambda name, content: b"\x80\x02" + copies + b"}." if name.endswith("data.pkl") else content)
    refused(path, "mappings have more than")


def test_tensors_spread_over_one_storage_are_refused(tmp_path: Path) -> None:
    storage = torch.zeros(500_000)
    refused(saved(tmp_path / "net.pth", {f"a{n}": storage[n : n + 499_801 : 499_800] for n in range(100)}), "would take")
