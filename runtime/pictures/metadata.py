"""What a picture says beside its pixels, and how it gets into a result."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from . import exif, vips

__all__ = ["Metadata", "of_image"]

_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:>|=\s*[\"']))\s*[2-8]")
_USUAL_RESOLUTION = (72 / 25.4, 72 / 25.4)
_UNKNOWN = 1.0
"""libvips' pixels per millimetre of a picture that does not say it. PNG files may hold the shape of pixels there."""
_OF_THE_INPUT = ("ImageJ=", "<?xml", "<OME", "{")
"""Beginnings of descriptions that tell programs of the input's size and pages."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a picture says beside its pixels."""

    icc: bytes | None = None
    """The ICC profile."""
    exif: bytes | None = None
    """The EXIF block, with or without its prefix."""
    xmp: bytes | None = None
    iptc: bytes | None = None
    description: str | None = None
    """TIFF's ImageDescription."""
    texts: bytes = b""
    """Chunks of a PNG file: texts, gamma."""
    resolution: tuple[float, float] = _USUAL_RESOLUTION
    """Pixels per millimetre, across and down."""

    def on(self, image: Any) -> Any:
        """A copy of a libvips image with all of this but texts and EXIF. A profile of another kind of colour is left out."""
        image = image.copy(xres=self.resolution[0], yres=self.resolution[1])
        blobs = {"xmp-data": self.xmp, "iptc-data": self.iptc}
        if (self.icc or b"")[16:20] == (b"GRAY" if image.bands < 3 else b"RGB "):
            blobs["icc-profile-data"] = self.icc
        for name, value in blobs.items():
            if value is not None:
                image.set_type(vips.pyvips.GValue.blob_type, name, value)
        if self.description is not None:
            image.set_type(vips.pyvips.GValue.gstr_type, "image-description", self.description)
        image.set_type(vips.pyvips.GValue.gstr_type, "resolution-unit", "in")
        return image

    def exif_of_result(self, height: int, width: int) -> bytes:
        """The EXIF block of an upright result, without prefix; empty if there is none."""
        return exif.of_result(self.exif, height, width) if self.exif else b""


def of_image(image: Any, *, texts: Sequence[bytes] = ()) -> Metadata:
    """The metadata of a picture as libvips opened it. `texts`: see `Metadata.texts`."""
    blobs = {name: bytes(image.get(field)) for name, field in _BLOBS.items() if image.get_typeof(field)}
    if "xmp" in blobs:
        blobs["xmp"] = _ORIENTATION.sub(rb"\g<1>1", blobs["xmp"])
    description = None
    if image.get_typeof("image-description"):
        with contextlib.suppress(UnicodeDecodeError):
            text = image.get("image-description")
            description = None if text.startswith(_OF_THE_INPUT) else text
    resolution: tuple[float, float] | None = (image.xres, image.yres)
    if not 0.1 < image.xres / max(image.yres, 1e-9) < 10 or min(image.xres, image.yres) <= _UNKNOWN:
        resolution = exif.resolution(blobs.get("exif", b""))
    return Metadata(**blobs, description=description, texts=b"".join(texts), resolution=resolution or _USUAL_RESOLUTION)


_BLOBS = {"icc": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data", "iptc": "iptc-data"}
