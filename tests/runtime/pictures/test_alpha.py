"""Transparency: alpha is bicubic, colour under it is spread, and neither depends on how the picture is cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rdsr.runtime import Upscaler
from rdsr.runtime.pictures.alpha import enlarge_alpha, spread_colour
from rdsr.runtime.pictures.channels import Colour, Target
from rdsr.tests.conftest import picture

FULL = {"uint8": 255, "uint16": 65535, "float32": 1.0}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_is_bicubic(scale: int, dtype: str) -> None:
    alpha = picture(37, 29, (), dtype)
    larger = enlarge_alpha(alpha, scale, (slice(0, 37), slice(0, 29)), FULL[dtype])
    wanted = cv2.resize(alpha.astype(np.float64), (29 * scale, 37 * scale), interpolation=cv2.INTER_CUBIC)
    assert larger.dtype == alpha.dtype
    assert np.abs(larger - np.clip(wanted, 0, FULL[dtype])).max() <= (0.51 if dtype == "uint8" else 2)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_no_cut_changes_colour_or_alpha(scale: int, dtype: str) -> None:
    pixels = picture(90, 70, (4,), dtype)
    pixels[20:80, 10:60, 3] = 0
    colour = Colour(pixels, grey=False)
    whole = colour[slice(0, 90), slice(0, 70)]
    out, cut = (np.empty((90 * scale, 70 * scale, 4), dtype) for _ in range(2))
    Target(out, pixels, scale)[slice(0, 90 * scale), slice(0, 70 * scale)] = 0
    for rows in (slice(0, 13), slice(13, 52), slice(52, 90)):
        for columns in (slice(0, 33), slice(33, 70)):
            assert np.array_equal(colour[rows, columns], whole[rows, columns])
            Target(cut, pixels, scale)[
                slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)
            ] = 0
    assert np.array_equal(out, cut)


def test_hidden_colours_give_way_to_visible_ones_nearby() -> None:
    colour = np.zeros((60, 60, 3), np.uint8)
    alpha = np.zeros((60, 60), np.uint8)
    colour[20:40, 20:40], alpha[20:40, 20:40] = (10, 200, 90), 255
    spread = spread_colour(colour, alpha, 255)
    assert (spread[5:55, 5:55] == (10, 200, 90)).all()
    opaque = np.full((60, 60), 255, np.uint8)
    assert spread_colour(colour, opaque, 255) is colour
    assert np.array_equal(spread_colour(colour, np.zeros_like(alpha), 255), colour), "nothing is visible, nothing to spread"


def shapes() -> dict[str, np.ndarray]:
    """RGBA pictures of 4 times 48×48 whose colour under alpha 0 is black."""
    y, x = np.mgrid[0:192, 0:192].astype(np.float64)
    radius = np.hypot(x - 96, y - 96)
    alphas = {
        "soft disc": np.clip((70 - radius) / 24, 0, 1),
        "hard edge": (x + 0.3 * y < 120).astype(float),
        "thin lines": (((x + y) % 24) < 3).astype(float),
        "faint": np.clip((70 - radius) / 24, 0, 1) * 0.1,
    }
    result = {}
    for name, alpha in alphas.items():
        for colour in ((255, 255, 255), (200, 30, 90)):
            rgba = np.zeros((192, 192, 4), np.uint8)
            rgba[..., 3] = np.rint(255 * alpha)
            rgba[..., :3] = np.where(rgba[..., 3:] > 0, np.array(colour, np.uint8), 0)
            result[f"{name} {colour}"] = rgba
    return result


def laid_on(rgba: np.ndarray, background: int) -> np.ndarray:
    full = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:] / full
    return rgba[..., :3] / full * 255 * alpha + background * (1 - alpha)


def reduced(rgba: np.ndarray) -> np.ndarray:
    """A quarter of the size: alpha and colour weighted by it, black where nothing is left to see."""
    alpha = rgba[..., 3] / 255
    parts = [
        cv2.resize(plane, (48, 48), interpolation=cv2.INTER_AREA)
        for plane in (*np.moveaxis(rgba[..., :3] * alpha[..., None], -1, 0), alpha)
    ]
    weighted, small = np.stack(parts[:3], -1), parts[3]
    colour = np.where(small[..., None] > 0, weighted / np.maximum(small[..., None], 1e-9), 0)
    return np.concatenate([np.rint(colour), np.rint(255 * small)[..., None]], -1).astype(np.uint8)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", shapes())
def test_no_background_shows_a_rim(name: str, deep: bool) -> None:
    """Laid on any background, no pixel is further from the truth than bicubic interpolation of premultiplied colour is."""
    truth = shapes()[name]
    lr = reduced(truth)
    premultiplied = np.dstack([lr[..., :3] * (lr[..., 3:] / 255.0), lr[..., 3].astype(np.float64)])
    bicubic = np.clip(cv2.resize(premultiplied, (192, 192), interpolation=cv2.INTER_CUBIC), 0, 255)
    larger = default()(lr.astype(np.uint16) * 257 if deep else lr)
    for background in (0, 128, 255):
        wanted = laid_on(truth, background)
        theirs = np.abs(bicubic[..., :3] + background * (1 - bicubic[..., 3:] / 255) - wanted)
        ours = np.abs(laid_on(larger, background) - wanted)
        assert ours.max() <= theirs.max() + 2, f"on {background}"
        assert ours.mean() <= theirs.mean() + 0.25, f"on {background}"


def test_palette_transparency_shows_no_rim(tmp_path: Path) -> None:
    from PIL import Image

    disc = shapes()["soft disc (255, 255, 255)"][::4, ::4]
    image = Image.new("P", (48, 48), 0)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.paste(1, mask=Image.fromarray((disc[..., 3] > 127).astype(np.uint8) * 255))
    image.save(tmp_path / "a.png", transparency=0)
    default().file(tmp_path / "a.png", tmp_path / "b.png")
    larger = np.asarray(Image.open(tmp_path / "b.png"))
    assert larger.shape == (192, 192, 4)
    assert larger[larger[..., 3] > 0][:, :3].min() >= 253


_LOADED: list[Upscaler] = []


def default() -> Upscaler:
    """The shipped network: an untrained one would draw nothing like the picture."""
    if not _LOADED:
        _LOADED.append(Upscaler.load(threads=2, precision="fp32"))
    return _LOADED[0]
