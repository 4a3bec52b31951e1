"""Pictures that scenes begin with: found inside the recipe's folder, and decoded with limits.

The size of a picture is checked before it is decoded. Models know neither transparency nor colour
profiles, so a picture is read as people see it: in sRGB, over white where it is transparent.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.errors import ImageError
from flowblend_cli.utils.files import UnsafeName, resolve_inside

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 50_000_000
CONVERSIONS = {
    "over_white": "is partly transparent, and is laid over white",
    "to_srgb": "has colours of another profile, and is converted to sRGB",
    "profile_left_out": "has a colour profile that can't be used, and is read as sRGB",
}
_ROUNDING = 2  # of 255 levels
_FORMATS = ("PNG", "JPEG")
# What turns into 8-bit RGB without being clipped; 16-bit grey levels don't.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_REFUSED = {
    "characters": "is empty or holds control characters: rename the file",
    "address": "is an address, and nothing is ever fetched: save the picture beside the recipe, "
    "and name that file",
    "outside": "isn't inside the recipe's folder {folder}: copy it there, and name it like "
    '"images/first.png"',
    "lookup": "can't be looked up: {reason}",
}


def load_image(name: str, recipe_dir: Path, sha256: str | None = None) -> Image:
    """Read a scene's picture.

    Args:
        name: As the recipe writes it: a path below ``recipe_dir``.
        recipe_dir: The recipe's folder.
        sha256: What the file's bytes must hash to; None takes any.

    Returns:
        The picture in 8-bit sRGB, turned upright, over white where it is transparent.

    Raises:
        ImageError: The name leads out of the folder, or to no PNG or JPEG that can be decoded, or
            to one that is too large or another than expected.
    """
    data = _read(name, recipe_dir)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(
            f"the image {name!r} in {recipe_dir} has changed since the job was made: put the "
            "former one back, or render from the recipe"
        )
    return _decode(name, data)[0]


def examine_image(name: str, recipe_dir: Path) -> tuple[str, tuple[str, ...]]:
    """Check that a scene's picture can be decoded, and hash its file.

    Args:
        name: See ``load_image``.
        recipe_dir: See ``load_image``.

    Returns:
        SHA-256 of the file's bytes, 64 hexadecimal digits; and names of ``CONVERSIONS``: what is
        done to the picture to read it.

    Raises:
        ImageError: See ``load_image``.
    """
    data = _read(name, recipe_dir)
    _, conversions = _decode(name, data)
    return hashlib.sha256(data).hexdigest(), conversions


def _read(name: str, recipe_dir: Path) -> bytes:
    path = _find(name, recipe_dir)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"the image {name!r} can't be read: {error.strerror}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(
            f"the image {name!r} is larger than the limit of {MAX_IMAGE_BYTES // 1024**2} MiB: "
            "save it smaller"
        )
    return data


def _find(name: str, recipe_dir: Path) -> Path:
    """Find the file that a name leads to, links followed, inside the recipe's folder."""
    try:
        path = resolve_inside(name, recipe_dir)
    except UnsafeName as error:
        problem = _REFUSED[error.kind].format(folder=recipe_dir, reason=error.reason)
        raise ImageError(f"the image {name!r} {problem}") from error
    if path.is_file():
        return path
    found = "is no file" if path.exists() else "doesn't exist"
    raise ImageError(f"the image {name!r} {found}: expected a PNG or JPEG at {path}")


def _decode(name: str, data: bytes) -> tuple[Image, tuple[str, ...]]:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of what our own, lower limit refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MAX_IMAGE_PIXELS + 1
    except Exception as error:
        raise ImageError(f"the image {name!r} is no PNG or JPEG: save it as one of them") from error
    if pixels > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"the image {name!r} has more than {MAX_IMAGE_PIXELS:,} pixels: save it smaller"
        )
    if image.mode not in _MODES:
        raise ImageError(
            f"the image {name!r} has more than 8 bits a channel (mode {image.mode}): save it with 8"
        )
    try:
        return _as_seen(ImageOps.exif_transpose(image))
    except Exception as error:
        raise ImageError(f"the image {name!r} is damaged: {error}") from error


def _as_seen(image: Image) -> tuple[Image, tuple[str, ...]]:
    """Convert a decoded picture to 8-bit sRGB over white, and name what that took."""
    from PIL import Image as Pillow

    done = []
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode not in ("L", "RGB", "CMYK"):  # the modes that profiles are made for
        image = image.convert("L" if image.mode == "LA" else "RGB")
    profile, shown = image.info.get("icc_profile"), image.convert("RGB")
    if profile:
        converted = _to_srgb(image, profile)
        if converted is None:
            done.append("profile_left_out")
        elif _differ(converted, shown):
            done.append("to_srgb")
            shown = converted
    if alpha is not None and alpha.getextrema() != (255, 255):
        done.append("over_white")
        shown = Pillow.composite(shown, Pillow.new("RGB", shown.size, "white"), alpha)
    return shown, tuple(done)


def _differ(image: Image, other: Image) -> bool:
    """Whether colours differ by more than the rounding of one sRGB profile and another."""
    from PIL import ImageChops

    bands: Any = ImageChops.difference(image, other).getextrema()
    return any(high > _ROUNDING for _, high in bands)


def _to_srgb(image: Image, profile: bytes) -> Image | None:
    """Convert a picture from its colour profile; None where the profile can't be used."""
    from PIL import ImageCms

    for mode in dict.fromkeys((image.mode, "RGB")):  # a grey picture may have a colour profile
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(
                image.convert(mode), own, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            continue
    return None
