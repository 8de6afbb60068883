"""A run's folder: configuration, data, versions, pieces, scores, metrics and report, each written whole."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.files import atomic, write_text
from manyhead.stocks.config import Config, build, read_toml, write_toml
from manyhead.stocks.panel import Panel
from manyhead.stocks.readers.rows import Rows
from manyhead.stocks.sectors import Sectors

PACKAGES = (
    "manyhead",
    "torch",
    "numpy",
    "scipy",
    "polars",
    "lightgbm",
    "gensim",
    "PyWavelets",
    "scikit-learn",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what is kept there."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def scores_file(self) -> Path:
        return self.path / "scores.parquet"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def open(self, config: Config, resume: bool) -> None:
        """Begin a run here, or continue the one that is here.

        Raises:
            InputError: if there is a run already and `resume` is off, or it has other settings.
        """
        if self.config_file.exists():
            if not resume:
                raise InputError(
                    f"{self.path} holds a run already: --resume continues it, --out names another folder"
                )
            there = self.config()
            differ = [name for name, value in there if value != getattr(config, name)]
            if differ:
                raise InputError(
                    f"the run in {self.path} has other settings in {', '.join(differ)}: "
                    f"resume it with its own {self.config_file}, or use another folder"
                )
            return
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; --out takes a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("versions.json", versions())
        write_text(self.config_file, write_toml(config))

    def config(self) -> Config:
        """Read the run's settings.

        Raises:
            InputError: if there is no run here.
        """
        if not self.config_file.exists():
            raise InputError(f"{self.path} holds no run: there is no {self.config_file.name} in it")
        return build(read_toml(self.config_file))

    def keep_panel(self, panel: Panel, sectors: Mapping[str, str] | None, source: str) -> None:
        """Keep the run's prices, so that it can be continued and reported without their source."""
        with atomic(self.path / "panel.npz") as stream:
            arrays: dict[str, Any] = {f"field/{name}": values for name, values in panel.fields.items()}
            arrays["dates"] = panel.dates.astype("datetime64[D]").astype(np.int64)
            arrays["symbols"] = np.array(panel.symbols)
            np.savez(stream, **arrays)
        self.write_json(
            "data.json",
            {
                "source": source,
                "sha256": panel_digest(panel),
                "first": str(panel.dates[0]),
                "last": str(panel.dates[-1]),
                "days": panel.days,
                "symbols": len(panel.symbols),
                "fields": sorted(panel.fields),
                "warnings": list(panel.warnings),
                "sectors": dict(sectors) if sectors else None,
            },
        )

    def keep_rows(self, rows: Rows) -> None:
        """Keep the prices as their source gave them: later days are checked together with these."""
        with atomic(self.path / "prices.parquet") as stream:
            rows.frame.sort("date", "symbol").write_parquet(stream, compression="zstd")

    def rows(self) -> Rows:
        """Read the prices as their source gave them.

        Raises:
            InputError: if the run has none.
        """
        file = self.path / "prices.parquet"
        if not file.exists():
            raise InputError(f"{self.path} keeps no {file.name}: the run is older than updates; run it again")
        return Rows(pl.read_parquet(file))

    @property
    def has_panel(self) -> bool:
        return (self.path / "data.json").exists()

    def panel(self) -> tuple[Panel, Sectors | None]:
        """Read the run's prices and sectors."""
        facts = self.read_json("data.json")
        with np.load(self.path / "panel.npz", allow_pickle=False) as arrays:
            fields = {
                name.removeprefix("field/"): arrays[name]
                for name in arrays.files
                if name.startswith("field/")
            }
            dates = arrays["dates"].astype("datetime64[D]")
            symbols = tuple(str(symbol) for symbol in arrays["symbols"])
        sectors = Sectors(facts["sectors"]) if facts["sectors"] else None
        return Panel(dates, symbols, fields, tuple(facts["warnings"])), sectors

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        write_text(self.path / name, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} is not a complete run: there is no {name} in it") from None


def panel_digest(panel: Panel) -> str:
    """SHA-256 over dates, symbols and every field."""
    digest = hashlib.sha256()
    digest.update(panel.dates.astype("datetime64[D]").astype(np.int64).tobytes())
    digest.update("\n".join(panel.symbols).encode())
    for name in sorted(panel.fields):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(panel.fields[name], dtype=np.float64).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What a run was made with."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["command"] = " ".join(["manyhead", *sys.argv[1:]]) if sys.argv[0].endswith("manyhead") else ""
    found["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    return found
