"""Fashion-MNIST from its four files, files of the same format, and digits in the same form.

The examples read it; nothing is downloaded.
"""

import gzip
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian puts them
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
NAMES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "ankle boot"]  # fmt: skip
GROUPS = ["top", "long", "top", "long", "top", "shoe", "top", "shoe", "carried", "shoe"]
DIGITS = [f"digit {i}" for i in range(10)]
DIGIT_GROUPS = ["round" if i in (0, 6, 8, 9) else "open" for i in range(10)]


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", raw[3], 4)
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise ValueError(f"Expected {path} to be a gzipped IDX file, but got: {error}") from error


def write_idx(path: Path, array: np.ndarray) -> None:
    """The same the other way round: `--fast` makes files of the format where there are none."""
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def make_files(folder: Path, n: int = 1200) -> None:
    """Made-up clothes, bright and dark, some mirrored; pairs of classes share the left half."""
    draw, rows = np.random.default_rng(0), np.arange(28)
    shapes = draw.random((10, 28, 28)) < 0.25
    shapes[1::2, :, :14] = shapes[::2, :, :14]
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels, size in ((*FILES[:2], n), (*FILES[2:], n)):
        y = draw.integers(0, 10, size)
        x = shapes[y] * draw.uniform(60, 255, (size, 1, 1)) + draw.normal(0, 80, (size, 28, 28))
        mirrored = draw.random(size) < 0.3
        x[mirrored] = x[mirrored][:, :, rows[::-1]]
        write_idx(folder / f"{images}-ubyte.gz", x.clip(0, 255))
        write_idx(folder / f"{labels}-ubyte.gz", y)


def read_clothes(folder: Path) -> list[np.ndarray]:
    """Images and labels to train on, images and labels to validate on.

    Raises:
        FileNotFoundError: If a file is not there; says how to get them.
        ValueError: If a file holds something else.
    """
    paths = [folder / f"{name}-ubyte.gz" for name in FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"Expected the four files of Fashion-MNIST in {folder}, but {', '.join(missing)} "
            "are not there. Either install Debian's package (apt-get install "
            "dataset-fashion-mnist), or name a folder that holds them: --data FOLDER. To try "
            "the example on scikit-learn's digits instead: --digits."
        )
    parts = [read_idx(path) for path in paths]
    for images, labels in (parts[:2], parts[2:]):
        if images.shape[1:] != (28, 28) or labels.shape != (len(images),) or labels.max() > 9:
            raise ValueError(
                "Expected images of 28 x 28 pixels, and a class from 0 to 9 for each, but got "
                f"images of shape {images.shape} and labels of shape {labels.shape} up to "
                f"{labels.max()} in {folder}."
            )
    return parts


def read_digits() -> list[np.ndarray]:
    """Scikit-learn's 1,797 digits, four times as large, in the same form."""
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    x = images[order].reshape(-1, 8, 8).repeat(3, 1).repeat(3, 2) * (255 / 16)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    y = np.asarray(labels[order])
    return [x[:700], y[:700], x[700:], y[700:]]
