"""The IDX format of MNIST: a header of magic number and shape, then the bytes.

The magic number is `0 0 type rank`, big-endian; images and labels are unsigned bytes (type 8).
"""

import gzip
import math
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

FILES = {
    ("train", "image"): "train-images-idx3-ubyte",
    ("train", "label"): "train-labels-idx1-ubyte",
    ("test", "image"): "t10k-images-idx3-ubyte",
    ("test", "label"): "t10k-labels-idx1-ubyte",
}

_UNSIGNED_BYTE = 8


def load(data_dir: Path | None) -> tuple[dict, dict]:
    """Returns the training and the test set, images in [0, 1], from plain or gzipped IDX files."""
    if data_dir is None:
        raise ValueError("MNIST needs a folder of IDX files: pass --data-dir FOLDER.")
    sets: dict[str, dict] = {"train": {}, "test": {}}
    for (part, kind), name in FILES.items():
        array = read(_find(Path(data_dir), name))
        dtype = jnp.float32 if kind == "image" else jnp.int32
        sets[part][kind] = jnp.asarray(array / 255.0 if kind == "image" else array, dtype)
    for part, arrays in sets.items():
        if len(arrays["image"]) != len(arrays["label"]):
            raise ValueError(
                f"{data_dir}: {len(arrays['image'])} {part} images, {len(arrays['label'])} labels."
            )
    return sets["train"], sets["test"]


def read(path: Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    rank = content[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if len(shape) != rank or len(content) - start != math.prod(shape):
        raise ValueError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(data_dir, name):
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
        if (data_dir / candidate).is_file():
            return data_dir / candidate
    raise FileNotFoundError(
        f"{data_dir} has no {name}[.gz]; MNIST is these four IDX files: {', '.join(FILES.values())}."
    )
