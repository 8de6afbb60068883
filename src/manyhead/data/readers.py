"""Files of data sets as arrays, tables and text."""

import sysconfig
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError, optional

Arrays = dict[str, NDArray[Any]]


def arrays(path: Path) -> Arrays:
    """Return the arrays of an .npz file by name; pickled objects are refused."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def graph(path: Path) -> Arrays:
    """Return a citation graph with its sparse binary features laid out as `feature` (nodes, features)."""
    found = arrays(path)
    feature = np.zeros((int(found["num_nodes"]), int(found["num_features"])), np.float32)
    feature[found["feature_row"], found["feature_col"]] = 1
    found["feature"] = feature
    return found


def sound(path: Path) -> dict[str, Any]:
    """Return recordings: `samples` one int16 array each, `digit`, `speaker` and `take` one entry each."""
    found = arrays(path)
    edges = found.pop("offset")
    whole = found.pop("samples")
    recordings = [whole[start:stop] for start, stop in pairwise(edges)]
    return {"samples": recordings, "rate": 8000, **found}


def table(path: Path) -> Any:
    """Return a CSV or Parquet file as a polars table."""
    import polars as pl

    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)


def atomic_tables(*paths: Path) -> dict[str, Any]:
    """Return RecBole's atomic files by ending (inter, item, user); the types in the header are obeyed."""
    import polars as pl

    types = {"token": pl.String, "token_seq": pl.String, "float": pl.Float64, "float_seq": pl.String}
    found = {}
    for path in paths:
        raw = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
        named = []
        for column in raw.columns:
            name, _, kind = column.partition(":")
            if kind not in types:
                raise InputError(
                    f"{path}: the column {column!r} has the type {kind!r}; {list(types)} are known"
                )
            named.append(raw[column].cast(types[kind]).alias(name))
        found[path.suffix[1:]] = pl.DataFrame(named)
    return found


def text(path: Path) -> str:
    """Return a text; bytes that are not UTF-8 are read as Latin-1."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text, without surrounding spaces."""
    return [line.strip() for line in text(path).splitlines() if line.strip()]


def python_source() -> str:
    """Return the source of Python's standard library, modules at its top level in order of name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in folder.glob("*.py") if path.is_file())
    return "\n".join(path.read_text("utf-8", errors="replace") for path in modules)


def sklearn_table(loader: str) -> dict[str, Any]:
    """Return a table that comes with scikit-learn."""
    bunch = getattr(optional("sklearn.datasets", "stocks"), loader)()
    found: dict[str, Any] = {
        "feature": np.asarray(bunch.data, np.float64),
        "target": np.asarray(bunch.target),
    }
    for name in ("feature_names", "target_names"):
        if getattr(bunch, name, None) is not None:
            found[name] = [str(entry) for entry in getattr(bunch, name)]
    return found


def skfolio_prices() -> Any:
    """Return skfolio's closing prices as a long polars table: date, symbol, close."""
    import polars as pl

    wide = optional("skfolio.datasets", "stocks").load_sp500_dataset()
    days = pl.Series("date", wide.index.to_numpy().astype("datetime64[D]"))
    columns = [pl.Series(str(name), wide[name].to_numpy()) for name in wide.columns]
    long = pl.DataFrame([days, *columns]).unpivot(index="date", variable_name="symbol", value_name="close")
    return long.drop_nulls("close").sort("symbol", "date")
