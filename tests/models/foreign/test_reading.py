"""Networks of others are known by their keys; what they see is found and proven; what is unsupported is refused by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdsr.models import load_model
from rdsr.models.errors import CheckpointError, UnsupportedModelError
from rdsr.models.foreign import Foreign, ForeignConfig, budget, fold, probes, reading
from rdsr.models.interface import DirectNetwork

from .networks import CONVOLUTIONAL, WHOLE, build, checkpoint


def read(folder: Path, name: str) -> DirectNetwork:
    loaded = load_model(checkpoint(folder, name))
    assert isinstance(loaded.network, DirectNetwork)
    return loaded.network


@pytest.mark.parametrize("name", WHOLE)
def test_it_computes_what_spandrel_computes(name: str, tmp_path: Path) -> None:
    """Also as fused, for a size that is no multiple of any window, and without a change to the picture. (spandrel clips.)"""
    network, theirs = read(tmp_path, name), reading._spandrel().load(build(name).state_dict())
    lr = torch.rand(1, 3, 43, 61, generator=torch.Generator().manual_seed(1))
    before = lr.clone()
    with torch.no_grad():
        ours, fused, clipped = network.decode(lr), network.fuse().decode(lr), theirs(lr.clone())
    assert torch.equal(lr, before)
    assert torch.equal(ours.clamp(0, 1), clipped)
    expected = ours
    assert float((fused - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    errors = network.fusion_errors(lr)
    assert errors.max_rel_err_float64 < 1e-12
    assert errors.blocks == (20 if name == "SPAN" else 0)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_pixel_beyond_the_radius_changes_nothing(name: str, tmp_path: Path) -> None:
    network, radius = read(tmp_path, name), CONVOLUTIONAL[name][1]
    assert (network.receptive_radius, network.tile_rule) == (radius, "exact")
    side, scale = 2 * radius + 9, network.scale
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    middle = side // 2
    for row, column, changes in ((0, radius, True), (0, radius + 1, False), (radius, 0, True), (radius + 1, 0, False)):
        other = lr.clone()
        other[0, :, middle - row, middle - column] = torch.nan  # whatever the weights are
        with torch.no_grad():
            block = network.decode(other)[..., middle * scale : (middle + 1) * scale, middle * scale : (middle + 1) * scale]
        assert bool(torch.isnan(block).any()) is changes, (row, column)


@pytest.mark.parametrize("name", ["RCAN", "RealPLKSR", "SwinIR", "HAT", "DAT"])
def test_what_is_pooled_or_attends_is_not_tiled_exactly(name: str, tmp_path: Path) -> None:
    network = read(tmp_path, name)
    assert (network.receptive_radius, network.tile_rule) == (None, "overlap")


class _Shifting(nn.Module):
    """A convolution of which every second pixel counts: sees little, but not the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.repeat_interleave(torch.repeat_interleave(self.conv(x)[..., ::2, ::2], 2, 2), 2, 3)


class _Stretching(nn.Module):
    """Sees little, but where it looks depends on the size."""

    def forward(self, x: Tensor) -> Tensor:
        small = nn.functional.interpolate(x, size=(x.shape[2] - 1, x.shape[3] - 1), mode="bilinear")
        return nn.functional.interpolate(small, size=x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("make", [_Shifting, _Stretching])
def test_a_radius_that_holds_only_at_some_places_is_none(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert probes.radius_of(make().eval(), 1, 0) is None


def test_a_radius_beyond_use_is_none() -> None:
    torch.manual_seed(0)
    wide = nn.Conv2d(3, 3, 3, padding=probes.LARGEST_RADIUS + 1, dilation=probes.LARGEST_RADIUS + 1)
    near = nn.Conv2d(3, 3, (1, 7), padding=(0, 9), dilation=(1, 3))
    assert probes.radius_of(wide.eval(), 1, 0, [wide]) is None
    many = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(probes.LARGEST_RADIUS + 1)))
    assert probes.radius_of(many.eval(), 1, 0) is None
    assert probes.radius_of(near.eval(), 1, 0) == 9


def test_normalization_that_others_read_too_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.alone, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.other(self.alone(y * self.norm(y)))

    torch.manual_seed(0)
    network = Shared()
    for norm in (network.norm, network.other):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    network.eval()
    x = torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        expected = network(x)
        assert fold.fold_normalization(network, network, x) == 1
        assert isinstance(network.norm, nn.BatchNorm2d)
        assert isinstance(network.other, nn.Identity)
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (40, 16)])
@pytest.mark.parametrize("shift", [0, 4])
def test_masks_of_windows_are_theirs(size: tuple[int, int], shift: int) -> None:
    block = build("SwinIR").layers[0].residual_group.blocks[1 if shift else 0]
    assert (block.window_size, block.shift_size) == (8, shift)
    torch.testing.assert_close(fold._window_mask(8, shift, size), block.calculate_mask(size), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_other_scales(scale: int, tmp_path: Path) -> None:
    from spandrel.architectures.Compact import Compact

    torch.save(Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=scale).state_dict(), tmp_path / "a.pth")
    network = load_model(tmp_path / "a.pth").network
    with torch.no_grad():
        assert network.decode(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)


@pytest.mark.parametrize(
    ("channels", "scale", "words"),
    [
        (1, 4, "this ESRGAN takes 1 and gives 1 channels; only RGB is supported"),
        (4, 4, "this ESRGAN takes 4 and gives 4 channels; only RGB is supported"),
        (3, 16, "this ESRGAN has the scale 16; supported are 1, 2, 3, 4, 8"),
    ],
)
def test_grey_rgba_and_scales_beyond_are_refused_in_one_sentence(
    channels: int, scale: int, words: str, tmp_path: Path
) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN

    network = ESRGAN(in_nc=channels, out_nc=channels, num_filters=8, num_blocks=1, scale=scale)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(tmp_path / "a.pth")


def test_other_purposes_are_refused(tmp_path: Path) -> None:
    from spandrel.architectures.LaMa import LaMa

    torch.save(LaMa().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnsupportedModelError, match="LaMa is a network for inpainting, not for super-resolution"):
        load_model(tmp_path / "a.pth")


def test_unknown_keys_name_both_ways(tmp_path: Path) -> None:
    torch.save({"some.weight": torch.rand(3, 3)}, tmp_path / "a.pth")
    words = r"some\.weight.*match no known architecture.*spandrel does not know them either"
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(tmp_path / "a.pth")


def test_a_network_that_spandrel_cannot_build_or_run_is_one_sentence(tmp_path: Path) -> None:
    tensors = build("Compact").state_dict()
    tensors["body.2.weight"] = torch.rand(7, 5, 3, 3)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "a.pth")
    assert "spandrel cannot build this network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_are_taken_as_spandrel_takes_them(tmp_path: Path) -> None:
    """MixDehazeNet gives its picture in another range, which only spandrel's call undoes."""
    from spandrel.architectures.MixDehazeNet import MixDehazeNet

    torch.manual_seed(0)
    model = MixDehazeNet(embed_dims=[8, 16, 32, 16, 8], depths=[1, 1, 1, 1, 1])
    torch.save(model.state_dict(), tmp_path / "a.pth")
    network = load_model(tmp_path / "a.pth").network
    lr = torch.rand(1, 3, 32, 32)
    theirs = reading._spandrel().load(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network.decode(lr).clamp(0, 1), theirs(lr))


@pytest.mark.parametrize("key", ["body.1000000000.bias", "body.99999999999999999999999.bias"])
def test_a_crafted_number_of_layers_builds_nothing(key: str, tmp_path: Path) -> None:
    torch.save({**build("Compact").state_dict(), key: torch.zeros(48)}, tmp_path / "a.pth")
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="more layers than 18 tensors explain"):
        load_model(tmp_path / "a.pth")
    assert time.monotonic() - started < 20, "this takes milliseconds"


def test_a_crafted_width_takes_no_memory(tmp_path: Path) -> None:
    """3 MB of a first layer would make 32 GB of each that follows."""
    tensors = build("Compact").state_dict()
    tensors["body.0.weight"], tensors["body.0.bias"] = torch.zeros(30_000, 3, 3, 3), torch.zeros(30_000)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="far larger than what the file holds"):
        load_model(tmp_path / "a.pth")


def test_a_budget_counts_calls_and_values() -> None:
    tensors = {"a": torch.zeros(4)}
    with budget.Budget(tensors):
        torch.zeros(1000).add_(1)
    for build_it in (lambda: [torch.zeros(1) for _ in range(60_000)], lambda: torch.zeros(1).repeat(2**26).repeat(2)):
        with pytest.raises(ValueError, match="far larger"), budget.Budget(tensors):
            build_it()
    with pytest.raises(ValueError, match="far larger"), budget.Budget(tensors):
        torch.arange(2**40)


def test_steps_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the steps of Compact cannot be set"):
        load_model(checkpoint(tmp_path, "Compact"), steps=4)


def test_square_pictures_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spandrel import SizeRequirements

    monkeypatch.setattr(SizeRequirements, "square", True)
    right = SizeRequirements.__init__
    monkeypatch.setattr(
        SizeRequirements, "__init__", lambda self, *a, **k: (right(self, *a, **k), setattr(self, "square", True))[0]
    )
    with pytest.raises(UnsupportedModelError, match="this Compact takes square pictures only"):
        load_model(checkpoint(tmp_path, "Compact"))


class _Writing(nn.Module):
    """Writes what depends on the picture into a fresh tensor, and then reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dead = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.table = nn.Parameter(torch.rand(3, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x).new_zeros(x.shape)
        y[..., 1:] = self.first(x)[..., 1:]
        return self.second(y) * self.table.softmax(1)[:, :1, None]


def test_what_follows_from_weights_alone_is_known_also_where_a_network_writes() -> None:
    torch.manual_seed(0)
    network = _Writing().eval().requires_grad_(False)
    derived = probes.derived_of(network, network.state_dict(keep_vars=True), torch.rand(1, 3, 8, 8))
    assert derived.absorbed == {"table", "dead.weight", "dead.bias"}, "no picture meets them"
    torch.testing.assert_close(derived.constants[-1].flatten(), network.table.softmax(1)[:, 0])
    assert all(value.numel() <= 36 for value in derived.constants if value.abs().max() > 0), "nothing of the picture"


def test_config_says_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="scale"):
        ForeignConfig(architecture="x", scale=0, minimum=0, multiple=1)


@pytest.mark.parametrize(("minimum", "multiple"), [(0, 4), (16, 1), (20, 8)])
def test_small_and_odd_pictures_are_mirrored_and_then_continued(minimum: int, multiple: int) -> None:
    from spandrel import SizeRequirements
    from spandrel.__helpers import size_req

    seen = []

    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert min(x.shape[2:]) >= minimum
            assert not any(side % multiple for side in x.shape[2:])
            seen.append(x)
            return x

    config = ForeignConfig(architecture="x", scale=1, minimum=minimum, multiple=multiple)
    network, lr = Foreign(config, Strict()), torch.rand(1, 3, 5, 7)
    assert torch.equal(network.decode(lr), lr)
    expected, _ = size_req.pad_tensor(lr, SizeRequirements(minimum=minimum, multiple_of=multiple))[::-1]
    assert torch.equal(seen[0], expected)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("whole", [True, False])
def test_a_hostile_file_is_never_executed(whole: bool, tmp_path: Path) -> None:
    """spandrel's own loader would unpickle it; ours reads tensors alone."""
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    evil = _Evil(trap)
    torch.save(evil if whole else {"params": build("Compact").state_dict(), "more": evil}, path)
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not trap.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(evil))
    trap.unlink(missing_ok=True)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "plain.pth")
    assert not trap.exists()


def test_without_spandrel_the_sentence_names_the_extra(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "Compact")
    script = textwrap.dedent("""
        import sys
        sys.modules["spandrel"] = None
        from rdsr.cli.main import main
        sys.argv = ["rdsr", "export", *sys.argv[1:]]
        main()
    """)
    command = [sys.executable, "-c", script, str(path), "-o", str(tmp_path / "b")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "pip install 'rdsr[foreign]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "b").exists()


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in build("Compact").state_dict().items()}, tmp_path / "a.pth")
    network = load_model(tmp_path / "a.pth").network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert np.isfinite(network.decode(torch.rand(1, 3, 8, 8)).numpy()).all()
