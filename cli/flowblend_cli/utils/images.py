"""The pictures that scenes begin with: found inside the recipe's folder, and decoded with limits.

A picture is read from the recipe's own tree only, and its size is looked at before it is decoded.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from flowblend_cli.errors import ImageError
from flowblend_cli.text import is_unsafe

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG")
# What turns into 8-bit RGB without being clipped; 16-bit grey levels don't.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def load_image(name: str, recipe_dir: Path, sha256: str | None = None) -> Image:
    """Read a scene's picture.

    Args:
        name: As the recipe writes it: a path below ``recipe_dir``.
        recipe_dir: The recipe's folder.
        sha256: What the file's bytes must hash to; None takes any.

    Returns:
        The picture in 8-bit RGB, turned upright.

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
    return _decode(name, data)


def hash_image(name: str, recipe_dir: Path) -> str:
    """Check that a scene's picture can be decoded, and hash its file.

    Args:
        name: See ``load_image``.
        recipe_dir: See ``load_image``.

    Returns:
        SHA-256 of the file's bytes, 64 hexadecimal digits.

    Raises:
        ImageError: See ``load_image``.
    """
    data = _read(name, recipe_dir)
    _decode(name, data)
    return hashlib.sha256(data).hexdigest()


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
    """The file that a name leads to, links followed, inside the recipe's folder."""
    if any(is_unsafe(character) for character in name):
        raise ImageError(f"the image {name!r} holds control characters: rename the file")
    if "://" in name or name.startswith("data:"):
        raise ImageError(
            f"the image {name!r} is an address, and nothing is ever fetched: save the picture "
            "beside the recipe, and name that file"
        )
    folder = recipe_dir.resolve()
    try:
        path = (folder / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(folder):
            raise ImageError(
                f"the image {name!r} isn't inside the recipe's folder {recipe_dir}: copy it there, "
                'and name it like "images/first.png"'
            )
        if path.is_file():
            return path
        found = "is no file" if path.exists() else "doesn't exist"
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ImageError(f"the image {name!r} can't be looked up: {error}") from error
    raise ImageError(f"the image {name!r} {found}: expected a PNG or JPEG at {path}")


def _decode(name: str, data: bytes) -> Image:
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
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise ImageError(f"the image {name!r} is damaged: {error}") from error
