"""A folder of images with one sub-folder a class."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from distillery.sources import Options

UNLABELLED = "unlabelled"
PILLOW_MODES = {"grey": "L", "rgb": "RGB"}


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Decodes every image; hidden files and those of DVC are passed over.

    The sub-folder's name is the label; images in the sub-folder `unlabelled` have none. An image's `file` is its
    path below the sub-folder, so it stays the same when a label comes later.

    Returns:
        Columns `image`, (channels, height, width) uint8, `label`, `file`, and `row_origin`, the path below `path`.

    Raises:
        UserError: naming a file that is no image, is damaged, has another size or stands outside the sub-folders.
    """
    import pyarrow as pa

    if not path.is_dir():
        raise UserError(f"{path} is no folder; data.source images needs one with a sub-folder for each class")
    files = _files(path)
    labels = [file.relative_to(path).parts[0] for file in files]
    images = decoded(files, options)
    return pa.table(
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "label": pa.array([None if label == UNLABELLED else label for label in labels], pa.string()),
            "file": pa.array(
                [file.relative_to(path / label).as_posix() for file, label in zip(files, labels, strict=True)]
            ),
            "row_origin": pa.array([file.relative_to(path).as_posix() for file in files]),
        }
    )


def decoded(files: Sequence[Path], options: "Options") -> "npt.NDArray[np.uint8]":
    """(N, channels, height, width) of some images, decoded side by side.

    Raises:
        UserError: naming a file that is no image, is damaged or has another size than the first.
    """
    import numpy as np

    decode = partial(_decode, size=options.image_size, mode=options.image_mode)
    first = decode(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        tracked = options.track(pool.map(decode, files), "images", len(files))
        for number, (file, image) in enumerate(zip(files, tracked, strict=True)):
            if image.shape != first.shape:
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    f"{file} is {image.shape[1]}x{image.shape[2]}, {files[0]} is {first.shape[1]}x{first.shape[2]} "
                    "(height x width): set ingest.image_size to resize all"
                )
            images[number] = image
    return images


def found(path: Path) -> list[Path]:
    """All files but hidden ones and those of DVC, in the order of their paths."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix != ".dvc"
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _files(path: Path) -> list[Path]:
    """The images, each below the folder of its class."""
    files = found(path)
    outside = [file for file in files if file.parent == path]
    if outside:
        raise UserError(f"{outside[0]} stands outside the class folders: move it into one, into {UNLABELLED}/, or away")
    if not files:
        raise UserError(f"{path} holds no image; it needs a sub-folder of images for each class")
    return files


def _decode(file: Path, size: tuple[int, int] | None, mode: str) -> "npt.NDArray[np.uint8]":
    """One image as (channels, height, width)."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            # Conversion would clip sixteen-bit and floating-point pixels to white.
            deep = opened.mode.startswith(("I", "F"))
            image = ImageOps.exif_transpose(opened).convert(PILLOW_MODES[mode])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(f" {str(file)!r}", "")
        raise UserError(f"{file} cannot be read as an image ({reason}): replace or delete it") from None
    if deep:
        raise UserError(f"{file} has more than 8 bits a channel: convert it first")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0)
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels[np.newaxis] if mode == "grey" else pixels.transpose(2, 0, 1))
