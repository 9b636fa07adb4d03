"""The data files: where each is found, the checksum of its content, and where it is published."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"
CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A published file.

    Attributes:
      name: in the data folder, or in the sub-folder.
      folder: the sub-folder that `download` puts it in.
      url: where it is published.
      checksum: `algorithm:digest` of the content, after decompression.
      packed_checksum: that of the file as it is served, where it is served gzipped.
    """

    name: str
    folder: str
    url: str
    checksum: str
    packed_checksum: str | None = None


FILES = {
    file.name: file
    for file in (
        DataFile(
            "train-images-idx3-ubyte",
            "mnist",
            MNIST + "train-images-idx3-ubyte.gz",
            "md5:6bbc9ace898e44ae57da46a324031adb",
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        DataFile(
            "train-labels-idx1-ubyte",
            "mnist",
            MNIST + "train-labels-idx1-ubyte.gz",
            "md5:a25bea736e30d166cdddb491f175f624",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
        ),
        DataFile(
            "t10k-images-idx3-ubyte",
            "mnist",
            MNIST + "t10k-images-idx3-ubyte.gz",
            "md5:2646ac647ad5339dbf082846283269ea",
            "md5:9fb629c4189551a2d022fa330f9573f3",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte",
            "mnist",
            MNIST + "t10k-labels-idx1-ubyte.gz",
            "md5:27ae3e4e09519cfbb04c329615203637",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
        DataFile(
            "a9a",
            "libsvm",
            LIBSVM + "a9a",
            "sha256:f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906",
        ),
        DataFile(
            "a9a.t",
            "libsvm",
            LIBSVM + "a9a.t",
            "sha256:1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
        ),
        DataFile(
            "w8a",
            "libsvm",
            LIBSVM + "w8a",
            "sha256:6a9fa8fd5f524303240a5db07d4b3d4a51e8b7b4b20a914105d8e3e8c81640f2",
        ),
        DataFile(
            "mushrooms",
            "libsvm",
            LIBSVM + "mushrooms",
            "sha256:f39a4eb628dc61a7d43760815b061c9e497aa728ce1ad8bde57a09ef6043b538",
        ),
        DataFile(
            "tinyshakespeare.txt",
            "text",
            CHAR_RNN + "input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    )
}


def read(data_dir: Path | None, name: str) -> bytes:
    """Returns the content of a data file, decompressed.

    Raises:
      FileNotFoundError: saying which command brings the file.
    """
    if data_dir is None:
        raise FileNotFoundError(
            f"{name} is needed: pass --data-dir FOLDER (or set OPTAX_IGR_DATA); {_bring(name)}."
        )
    path = find(data_dir, name)
    if path is None:
        raise FileNotFoundError(f"{data_dir} has no {name}[.gz]; {_bring(name)}.")
    return content(path)


def find(data_dir: Path, name: str) -> Path | None:
    """Returns the path of a data file in the folder or its sub-folder, plain or gzipped."""
    folder = FILES[name].folder
    for parent in (Path(data_dir), Path(data_dir) / folder):
        # Plain first: it needs no unpacking.
        for candidate in (name, f"{name}.gz"):
            if (parent / candidate).is_file():
                return parent / candidate
    return None


def content(path: Path) -> bytes:
    """Reads a file, gzipped or not."""
    stored = path.read_bytes()
    try:
        return gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def is_published(name: str, found: bytes) -> bool:
    """Says whether a content has the published checksum."""
    algorithm, digest = FILES[name].checksum.split(":")
    return hashlib.new(algorithm, found).hexdigest() == digest


def provenance(name: str, found: bytes) -> str:
    """Returns nothing for the published content, else a remark that keeps its records apart."""
    if is_published(name, found):
        return ""
    return f" [not the published {name}: sha256 {hashlib.sha256(found).hexdigest()[:12]}]"


def download(data_dir: Path, name: str) -> Path:
    """Fetches a published file unless it is there, checks and unpacks it; returns its path.

    Raises:
      ValueError: where the content is not the published one; what was fetched is removed.
      OSError: where the server does not give the whole file.
    """
    file = FILES[name]
    existing = find(data_dir, name)
    if existing is not None:
        # A file that a user has put there is not overwritten.
        if not is_published(name, content(existing)):
            raise ValueError(
                f"{existing} does not have the checksum {file.checksum}; remove it and call download again."
            )
        return existing
    # Only here, as it is slow to import and most commands fetch nothing.
    import pooch

    packed = file.packed_checksum is not None
    try:
        found = pooch.retrieve(
            file.url,
            known_hash=file.packed_checksum or file.checksum,
            fname=f"{name}.gz" if packed else name,
            path=Path(data_dir) / file.folder,
            processor=pooch.Decompress(name=name) if packed else None,
        )
    except ValueError as error:
        raise ValueError(f"{file.url} may have changed: {error}") from error
    return Path(found)


def _bring(name):
    return f"`python -m benchmarks download {FILES[name].folder}` brings it"
