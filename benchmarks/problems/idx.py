"""The IDX format of MNIST: a header of magic number and shape, then the bytes.

The magic number is `0 0 type rank`, big-endian; images and labels are unsigned bytes (type 8).
"""

import math
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks.problems import data

PARTS = {"train": "train", "test": "t10k"}

_UNSIGNED_BYTE = 8


def load(data_dir: Path | None) -> tuple[dict, dict, str]:
    """Returns the training and the test set, images in [0, 1], and a remark on other than MNIST's files."""
    sets: dict[str, dict] = {}
    remark = ""
    for part, prefix in PARTS.items():
        images, labels = (
            data.read(data_dir, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        )
        # One remark is enough to keep the records of other data apart.
        if part == "train":
            remark = data.provenance("train-images-idx3-ubyte", images)
        x, y = parse(images, f"{prefix} images"), parse(labels, f"{prefix} labels")
        if len(x) != len(y):
            raise ValueError(f"{data_dir}: {len(x)} {part} images, {len(y)} labels.")
        sets[part] = {
            "image": jnp.asarray(x / 255.0, jnp.float32),
            "label": jnp.asarray(y, jnp.int32),
        }
    return sets["train"], sets["test"], remark


def parse(content: bytes, what: str) -> np.ndarray:
    """Parses the content of an IDX file of unsigned bytes."""
    # Checked by hand: NumPy would read any bytes as an image.
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"the {what} are not an IDX file of unsigned bytes.")
    rank = content[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if len(shape) != rank or len(content) - start != math.prod(shape):
        raise ValueError(f"the {what}: {len(content)} bytes do not hold an array of shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
