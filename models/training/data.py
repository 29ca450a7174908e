"""Training pictures: decode them once into memory, with LR twin and target, and cut random augmented patches from them."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..degradation import JPEG_BLOCK, VECTOR_SIZE, Degradation, PhotoDegradations
from ..downscaling import bicubic_downscale, crop_to_multiple, mirrored
from .errors import TrainingError

__all__ = ["PICTURE_SUFFIXES", "Batch", "PatchSource", "Picture", "Rgb", "find_pictures", "named_pictures", "read_rgb"]

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp"})
MAX_PIXELS = 2**27
"""Most pixels of a training picture, checked before it is decoded."""
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP")
logger = logging.getLogger(__name__)
# Pictures beyond our own limit are refused; those below it, which Pillow would warn of, are meant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_MOST_REDUCTION = 2.0
"""Largest factor by which an original is reduced for a patch."""
_MARGIN = 4
"""LR pixels around a patch of a reduced original."""
_LOW_RESOLUTION = re.compile(r"^LRx\d|_LR(_|$)")
Rgb = NDArray[np.uint8]


class Picture(NamedTuple):
    """A training picture in memory, H×W×3 uint8 RGB each."""

    hr: Rgb
    """The original, cropped to a multiple of the scale."""
    lr: Rgb
    """Its bicubic twin."""
    target: Rgb
    """The result that a network must learn, of HR's size: the original, or its mix with a teacher's picture."""


class _Loaded(NamedTuple):
    picture: Picture
    taught: bool


class Batch(NamedTuple):
    """N patches of one size."""

    hr: Rgb
    """N×sP×sP×3 uint8 RGB: originals, which the latent prior encoder sees."""
    target: Rgb
    """N×sP×sP×3 uint8 RGB: the results that the network must learn. Without a teacher it is `hr`, the same array."""
    lr: Rgb
    """N×P×P×3 uint8 RGB."""
    degradation: NDArray[np.float32]
    """N×`VECTOR_SIZE`: how each LR patch was made (`Degradation.vector`)."""


def read_rgb(path: Path) -> Rgb | None:
    """Read a picture file as H×W×3 uint8 RGB. None, and a warning that names it, if it cannot be used.

    That is: it cannot be read, there is not enough memory, or its header claims more than `MAX_PIXELS`. This is not the
    runtime's reader, because training also runs on machines that have no libvips. The picture is turned upright; deeper
    samples are rounded to 8 bits; alpha is dropped.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return _decoded(image)
            reason = f"it has {image.width}×{image.height} pixels, more than the limit of {MAX_PIXELS}"
    except Image.DecompressionBombError:  # Pillow's own limit is higher than ours
        reason = f"it has more pixels than the limit of {MAX_PIXELS}"
    except MemoryError:
        reason = "there is not enough memory for it"
    except Exception:  # decoders raise almost any kind for a damaged file
        reason = "it is not a readable picture"
    logger.warning("left out %s: %s", path, reason)
    return None


def _decoded(image: Image.Image) -> Rgb:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        grey = np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def find_pictures(folders: Sequence[Path]) -> list[Path]:
    """All pictures below the folders, sorted; `TrainingError` for a folder that is missing or holds none.

    Leaves out the low-resolution side of a data set (`LRx4/`, `DIV2K_train_LR_bicubic/`).
    """
    return [path for _, path in named_pictures(folders)]


def named_pictures(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The same pictures as pairs: (subfolder and stem, which a teacher's picture shares; path)."""
    found: list[tuple[Path, Path]] = []
    for folder in folders:
        if not folder.is_dir():
            fault = "is not a folder" if folder.exists() else "does not exist"
            raise TrainingError(f"the data folder {folder} {fault}")
        pictures = [
            (path.relative_to(folder).with_suffix(""), path)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in PICTURE_SUFFIXES
            and path.is_file()
            and not any(_LOW_RESOLUTION.search(part) for part in path.relative_to(folder).parts[:-1])
        ]
        if not pictures:
            raise TrainingError(f"the data folder {folder} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        found += pictures
    return found


class PatchSource:
    """Training pictures in memory, and batches of aligned patches drawn from them.

    Batch number `step` depends only on the seed and the step, so an interrupted run resumes exactly.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        scale: int,
        patch_sizes: Sequence[int],
        seed: int,
        teachers: Sequence[Path] = (),
        teacher_weight: float = 1.0,
        photo: PhotoDegradations | None = None,
        first: tuple[int, int] = (0, 0),
        reduced: float = 0.0,
        permuted: float = 0.0,
    ) -> None:
        """Decode every picture. Ones that cannot be used (`read_rgb`) or are smaller than a patch are named and left out.

        `teachers`: folders that mirror the data folders and hold a teacher's picture for some originals (of two for one
        original, the first counts; one that cannot be read counts for nothing); the target is `teacher_weight` of it and the
        rest of the original. `photo`: LR patches are degraded at random instead of bicubic. `first`: (steps, LR patch side)
        of the first steps, whose batches hold exactly as many patches as asked for. `reduced`: share of patches that are cut
        from an original reduced by up to `_MOST_REDUCTION`, which is their target. `permuted`: share of patches whose colour
        channels are permuted.

        `TrainingError` if no picture is left for one of the patch sizes, or a teacher's picture has another size than its
        original cropped to a multiple of the scale.
        """
        self.scale = scale
        self.patch_sizes = tuple(patch_sizes)
        self.seed = seed
        self.photo = photo
        self.first_steps, self.first_patch = first
        self.reduced, self.permuted = reduced, permuted
        self._small: list[str] = []
        originals = named_pictures(list(dict.fromkeys(folders)))
        by_name = dict(reversed(named_pictures(teachers)))
        teacher_of = {path: by_name[name] for name, path in originals if name in by_name}
        paths = [path for _, path in originals]
        with ThreadPoolExecutor(max_workers=2) as pool:
            loaded = list(pool.map(lambda path: self._load(path, teacher_of.get(path), teacher_weight), paths))
        if self._small:
            shown = ", ".join(sorted(self._small)[:5]) + (", …" if len(self._small) > 5 else "")
            logger.warning("left out %d pictures smaller than a patch (%s)", len(self._small), shown)
        used = {path: each for path, each in zip(paths, loaded, strict=True) if each is not None}
        self.pictures = [each.picture for each in used.values()]
        self.taught = sum(each.taught for each in used.values())
        """Number of pictures that have a teacher's picture."""
        if teachers and self.taught < len(used):
            untaught = len(used) - self.taught
            logger.warning("%d of %d pictures have no teacher's picture and are their own target", untaught, len(used))
        self.eligible = {
            patch: [i for i, picture in enumerate(self.pictures) if min(picture.lr.shape[:2]) >= patch]
            for patch in {*self.patch_sizes, *([self.first_patch] if self.first_steps else [])}
        }
        for patch, fitting in self.eligible.items():
            if not fitting:
                raise TrainingError(
                    f"none of the {len(paths)} pictures can be used for patches of {patch} LR pixels, "
                    f"which need at least {patch * scale} pixels a side"
                )
        seen = [(path.name, each.picture.hr.shape, *(["taught"] * each.taught)) for path, each in used.items()]
        self.digest = hashlib.sha256(repr(seen).encode()).hexdigest()
        """sha256 of the pictures' names and sizes and of which have a teacher's; a resumed run must find the same."""

    def _load(self, path: Path, teacher: Path | None, weight: float) -> _Loaded | None:
        """A picture, and whether it has a teacher's; None if it cannot be used, which is named then."""
        picture = read_rgb(path)
        if picture is None:
            return None
        try:
            hr = crop_to_multiple(picture, self.scale)
            if min(hr.shape[:2]) < min(self.patch_sizes) * self.scale:
                self._small.append(path.name)
                return None
            target = None if teacher is None else _taught(hr, teacher, weight)
            lr = bicubic_downscale(hr, self.scale)
        except MemoryError:
            logger.warning("left out %s: there is not enough memory for it", path)
            return None
        return _Loaded(Picture(hr, lr, hr if target is None else target), target is not None)

    def batch(self, step: int, size: int) -> Batch:
        """Draw a batch of about `size` patches (at the first patch size)."""
        rng = np.random.default_rng((self.seed, step))
        if step < self.first_steps:
            patch, count = self.first_patch, size
        else:
            patch = int(rng.choice(self.patch_sizes))
            count = max(2, round(size * (self.patch_sizes[0] / patch) ** 2))
        scale, side = self.scale, patch * self.scale
        hr = np.empty((count, side, side, 3), dtype=np.uint8)
        target = np.empty_like(hr) if self.taught else hr
        lr = np.empty((count, patch, patch, 3), dtype=np.uint8)
        vectors = np.empty((count, VECTOR_SIZE), dtype=np.float32)
        for index in range(count):
            # Every picture is equally likely: 0.02 dB better on Kodak24 after 800 steps than preferring large ones.
            picture = self.pictures[int(rng.choice(self.eligible[patch]))]
            y, x = (int(rng.integers(length - patch + 1)) for length in picture.lr.shape[:2])
            turn, mirror = int(rng.integers(4)), bool(rng.integers(2))

            def turned(cut: Rgb, turn: int = turn, mirror: bool = mirror) -> Rgb:
                cut = np.rot90(cut, turn)
                return cut[:, ::-1] if mirror else cut

            y_hr, x_hr = y * scale, x * scale
            if self.reduced and rng.random() < self.reduced:
                picture, y_hr, x_hr = _reduced(picture, side, scale, rng)
                y, x = y_hr // scale, x_hr // scale
            hr[index] = turned(picture.hr[y_hr : y_hr + side, x_hr : x_hr + side])
            if self.taught:
                target[index] = turned(picture.target[y_hr : y_hr + side, x_hr : x_hr + side])
            degradation = Degradation() if self.photo is None else self.photo.draw(rng)
            if degradation.clean:
                lr[index] = turned(picture.lr[y : y + patch, x : x + patch])
            else:
                margin = degradation.margin(scale)
                window = turned(_window(picture.hr, y_hr, x_hr, side, margin * scale))
                lr[index] = _degraded(window, degradation, patch, scale, rng)
            vectors[index] = degradation.vector()
            if self.permuted and rng.random() < self.permuted:
                order = rng.permutation(3)
                for patches in (hr, lr, *([target] if self.taught else [])):
                    patches[index] = patches[index][:, :, order]
        return Batch(hr, target, lr, vectors)

    def stream(self, start: int, stop: int, size: int, workers: int = 1) -> Iterator[Batch]:
        """Yield batches `start` … `stop` − 1 in order; `workers` background threads prepare a few ahead."""
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="rdsr-patches") as pool:
            ahead = workers + 3
            ready = deque(pool.submit(self.batch, step, size) for step in range(start, min(stop, start + ahead)))
            try:
                for step in range(start, stop):
                    batch = ready.popleft().result()
                    if step + ahead < stop:
                        ready.append(pool.submit(self.batch, step + ahead, size))
                    yield batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _taught(hr: Rgb, path: Path, weight: float) -> Rgb | None:
    """Mix an original with its teacher's picture, rounded to 8 bits; None if that cannot be read."""
    teacher = read_rgb(path)
    if teacher is None:
        return None
    if teacher.shape != hr.shape:
        sizes = (f"{picture.shape[0]}×{picture.shape[1]}" for picture in (teacher, hr))
        raise TrainingError("the teacher's picture {} has {} pixels, its original {}".format(path, *sizes))
    return np.asarray(cv2.addWeighted(teacher, weight, hr, 1 - weight, 0), np.uint8)


def _reduced(picture: Picture, side: int, scale: int, rng: np.random.Generator) -> tuple[Picture, int, int]:
    """A part of an original, reduced; its twin; and where in it a patch of `side` HR pixels begins.

    A margin around the patch keeps the mirrored edges of the part out of it, where the original is large enough.
    """
    length = side + 2 * _MARGIN * scale
    height, width = picture.hr.shape[:2]
    smallest = max(1 / _MOST_REDUCTION, side / min(height, width))
    factor = float(rng.uniform(min(1.0, smallest), 1.0))
    rows, columns = (min(extent, round(length / factor)) for extent in (height, width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    columns_now, rows_now = (max(side, round(extent * factor) // scale * scale) for extent in (columns, rows))
    part = Image.fromarray(picture.hr[top : top + rows, left : left + columns])
    hr = np.asarray(part.resize((columns_now, rows_now), Image.Resampling.BICUBIC))  # antialiased
    y, x = ((extent - side) // 2 // scale * scale for extent in hr.shape[:2])
    return Picture(hr, bicubic_downscale(hr, scale), hr), y, x


def _window(picture: Rgb, y: int, x: int, side: int, margin: int) -> Rgb:
    """Cut a square with a margin around it; beyond the border the picture is mirrored with its edge pixel repeated."""
    height, width = picture.shape[:2]
    if margin <= min(y, x) and y + side + margin <= height and x + side + margin <= width:
        return picture[y - margin : y + side + margin, x - margin : x + side + margin]
    around = np.arange(-margin, side + margin)
    return picture[np.ix_(mirrored(y + around, height), mirrored(x + around, width))]


def _degraded(window: Rgb, degradation: Degradation, patch: int, scale: int, rng: np.random.Generator) -> Rgb:
    """Degrade a window and cut out its middle; the grid of JPEG blocks starts at a random place."""
    margin = (window.shape[0] // scale - patch) // 2
    top, left = rng.integers(JPEG_BLOCK, size=2) if degradation.jpeg else (0, 0)
    lr = degradation.apply(window[top * scale :, left * scale :], scale, rng)
    return lr[margin - top : margin - top + patch, margin - left : margin - left + patch]
