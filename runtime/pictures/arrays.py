"""Pictures in memory: convert the callers' kinds of array into the graphs' input, and the output back into the same kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PictureError

__all__ = ["FULL_SCALE", "OVERSHOOT", "Picture", "check_picture", "check_values", "from_graph", "split_alpha", "to_graph"]

Picture = NDArray[Any]
"""H×W or H×W×C; uint8, uint16 or float32."""
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
"""Greatest value of colour and alpha in each dtype that pictures may have."""
OVERSHOOT = 0.5
"""Distance beyond [0, 1] that float32 pictures may have after resizing or filters. More means another value range."""


def check_picture(picture: Any) -> Picture:
    """The picture as an array, if it can be upscaled. Otherwise raises `PictureError`, which says what is needed.

    H×W or H×W×C with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); uint8, uint16, or float32 in [0, 1], overshoots of
    up to `OVERSHOOT` included. Arrays of the other byte order are converted.
    """
    if not isinstance(picture, np.ndarray) or isinstance(picture, np.ma.MaskedArray):
        raise PictureError(f"a NumPy array of height × width × channels is needed, not {type(picture).__name__}")
    picture = np.asarray(picture)  # subclasses may index differently
    native = picture.dtype.newbyteorder("=")
    if native not in FULL_SCALE:
        raise PictureError(f"a picture of uint8, uint16 or float32 is needed, not {picture.dtype}")
    picture = picture.astype(native, copy=False)
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 2, 3, 4)):
        raise PictureError(f"a picture of shape H×W or H×W×C with 1 to 4 channels is needed, not {picture.shape}")
    if 0 in picture.shape:
        raise PictureError(f"the picture is empty (shape {picture.shape})")
    check_values(picture)
    return picture


def check_values(picture: Picture) -> None:
    """Raise `PictureError` if float32 pixels are not finite, or leave [0, 1] by more than `OVERSHOOT`."""
    if picture.dtype == np.float32:
        low, high = float(picture.min()), float(picture.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # a NaN makes both NaN
            raise PictureError("the picture holds NaN or infinity")
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            raise PictureError(f"float32 pictures have values from 0 to 1, and this one has {low:g} to {high:g}")


def split_alpha(picture: Picture) -> tuple[Picture, Picture | None]:
    """Colour (H×W×1 or H×W×3) and alpha (H×W or None) of a checked picture."""
    if picture.ndim == 2:
        return picture[:, :, None], None
    if picture.shape[2] in (2, 4):
        return picture[:, :, :-1], picture[:, :, -1]
    return picture, None


def to_graph(colour: Picture) -> NDArray[np.float32]:
    """H×W×1 or H×W×3 of any supported dtype → 1×3×H×W float32 in [0, 1]. Grey is repeated to three channels."""
    values = colour.astype(np.float32) / np.float32(FULL_SCALE[colour.dtype])
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def from_graph(sr: NDArray[np.float32], like: Picture) -> Picture:
    """1×3×H×W float32 → H×W×C of `like`'s dtype and colour channels, clipped, rounded half to even. `sr` stays as it is."""
    planes = sr[0].mean(axis=0, keepdims=True) if like.shape[2] == 1 else sr[0]
    full = np.float32(FULL_SCALE[like.dtype])
    picture = np.empty((*planes.shape[1:], len(planes)), like.dtype)
    for channel, plane in enumerate(planes):  # plane by plane and in place: a third of the time
        values = plane * full
        if like.dtype != np.float32:
            np.rint(values, out=values)
        picture[:, :, channel] = np.clip(values, 0.0, full, out=values)
    return picture
