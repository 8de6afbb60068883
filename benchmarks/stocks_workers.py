"""One worker against several on the same stock run: `python benchmarks/stocks_workers.py --prices FILE`.

The same configuration is run twice into folders of its own, with one worker and with `--workers`. Two times
are taken of each: until the last piece of work is done, and until the report is written, which is one
piece. The score tables must agree in every bit.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from manyhead.files import write_text
from manyhead.stocks.config import build
from manyhead.stocks.pipeline import run
from manyhead.stocks.result import Result


def timed(settings: dict[str, object], folder: Path, workers: int) -> tuple[Result, float, float]:
    """Run; returns the result, the seconds until the last piece was done, and the seconds of the whole."""
    began, clock = time.perf_counter(), time.time()
    result = run(build(settings), folder, workers=workers, progress=False)
    whole = time.perf_counter() - began
    last = max(path.stat().st_mtime for path in folder.glob("items/*/*/item.json"))
    return result, last - clock, whole


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prices", required=True)
    options.add_argument("--start", default="2016-01-01")
    options.add_argument("--universe", type=int, default=60)
    options.add_argument("--splits", type=int, default=2)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--out", type=Path, help="JSON file for the figures")
    chosen = options.parse_args()
    settings: dict[str, object] = {
        "data": {"prices": chosen.prices, "start": chosen.start},
        "universe": {"count": chosen.universe},
        "splits": {"count": chosen.splits},
        "training": {"seeds": list(range(chosen.seeds)), "epochs": chosen.epochs, "patience": 0},
        "baselines": {"names": []},
    }
    with tempfile.TemporaryDirectory() as folder:
        one, pieces, whole = timed(settings, Path(folder) / "one", 1)
        many, pieces_many, whole_many = timed(settings, Path(folder) / "many", chosen.workers)
        same = one.scores.equals(many.scores)
    count = chosen.splits * chosen.seeds
    print(f"{count} pieces, {one.scores.height:,} scores, the same in every bit: {'yes' if same else 'NO'}")
    print(f"pieces: 1 worker {pieces:6.1f} s, {chosen.workers} workers {pieces_many:6.1f} s")
    print(f"whole:  1 worker {whole:6.1f} s, {chosen.workers} workers {whole_many:6.1f} s")
    print(
        f"{chosen.workers} workers bring {pieces / pieces_many:.2f}x "
        f"(report included {whole / whole_many:.2f}x)"
    )
    if chosen.out:
        record = {
            "command": f"python benchmarks/stocks_workers.py --universe {chosen.universe} "
            f"--splits {chosen.splits} --seeds {chosen.seeds} --epochs {chosen.epochs} "
            f"--workers {chosen.workers}",
            "machine": {"cpus": os.cpu_count(), "machine": platform.machine()},
            "pieces": count,
            "same_bits": same,
            "seconds_one": {"pieces": pieces, "whole": whole},
            "seconds_many": {"pieces": pieces_many, "whole": whole_many},
            "ratio": {"pieces": pieces / pieces_many, "whole": whole / whole_many},
        }
        write_text(chosen.out, json.dumps(record, indent=1) + "\n")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
