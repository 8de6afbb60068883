"""Data sets fetched by the client of the place where they live, written in our form."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from manyhead.errors import InputError, optional
from manyhead.files import atomic


def _client(module: str) -> Any:
    """Import a client that no extra of ours installs."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.split(".")[0]
        raise InputError(f"this needs the package {package!r}: pip install {package}") from None


def save_arrays(path: Path, **found: Any) -> None:
    """Write a compressed .npz file atomically."""
    with atomic(path) as stream:
        np.savez_compressed(stream, **found)


def mnist(folder: Path) -> None:
    """Fetch MNIST from OpenML through scikit-learn and keep its test half, the last 10,000 digits."""
    bunch = optional("sklearn.datasets", "stocks").fetch_openml(
        "mnist_784", version=1, as_frame=False, parser="liac-arff", n_retries=0
    )
    image = np.asarray(bunch.data)[-10000:].astype(np.uint8).reshape(-1, 28, 28)
    save_arrays(
        folder / "mnist_10k.npz", image=image, label=np.asarray(bunch.target)[-10000:].astype(np.uint8)
    )


def planetoid(folder: Path, name: str) -> None:
    """Fetch a citation graph with its public split through PyTorch Geometric."""
    known = {"cora": "Cora", "citeseer": "CiteSeer"}
    data = optional("torch_geometric.datasets", "graphs").Planetoid(str(folder / "planetoid"), known[name])[0]
    feature = data.x.numpy()
    row, col = np.nonzero(feature)
    pairs = data.edge_index.numpy().T
    edge = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    label = data.y.numpy().astype(np.int16)
    parts = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
    save_arrays(
        folder / f"{name}.npz",
        feature_row=row.astype(np.int32),
        feature_col=col.astype(np.int32),
        num_features=np.int64(feature.shape[1]),
        num_nodes=np.int64(feature.shape[0]),
        label=label,
        edge=edge.astype(np.int32),
        **{part: np.flatnonzero(mask.numpy()).astype(np.int32) for part, mask in parts.items()},
    )


def wikitext2(folder: Path, part: str) -> None:
    """Fetch a part of WikiText-2 through Hugging Face datasets."""
    split = {"valid": "validation", "test": "test"}[part]
    rows = _client("datasets").load_dataset("Salesforce/wikitext", "wikitext-2-v1", split=split)
    with atomic(folder / f"wikitext2_{part}.txt", "w") as stream:
        stream.write("".join(rows["text"]))


def rt_polarity(folder: Path, sign: str) -> None:
    """Fetch one half of the movie-review sentences through NLTK."""
    nltk = _client("nltk")
    if not nltk.download("sentence_polarity", quiet=True, raise_on_error=True):
        raise InputError("nltk could not download sentence_polarity")
    corpus = _client("nltk.corpus").sentence_polarity
    with atomic(folder / f"rt_polarity_{sign}.txt", "w") as stream:
        stream.write(corpus.raw(f"rt-polarity.{sign}"))
