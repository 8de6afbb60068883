"""Does bfloat16 change what Stockformer finds? Train in both precisions and compare validation IC.

    python benchmarks/stockformer_bf16.py --prices prices.parquet --universe 60 --seeds 0,1,2

Prints, for each seed, the mean daily validation IC of the best epoch in float32 and under bfloat16 autocast,
their difference, the standard error of the float32 IC over days, and the ratio of training times; writes
benchmarks/results/stockformer_bf16.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from manyhead.files import write_text
from manyhead.stocks import learn
from manyhead.stocks.config import build
from manyhead.stocks.intervals import standard_error
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.pipeline import load_panel
from manyhead.stocks.prepare import prepare
from manyhead.stocks.splits import choose_splits

RESULT = Path(__file__).parent / "results" / "stockformer_bf16.json"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prices", default="skfolio")
    parser.add_argument("--start", default="2016-01-01")
    parser.add_argument("--universe", type=int, default=60)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--dim", type=int, default=32)
    options = parser.parse_args()
    settings = {
        "data": {"prices": options.prices, "start": options.start},
        "universe": {"count": options.universe},
        "model": {"dim": options.dim},
    }
    config = build(settings, {"training": {"epochs": options.epochs, "patience": 0}})
    panel, _ = load_panel(config)
    split = max(choose_splits(config, panel.days).items())[1]
    rows = []
    for seed in map(int, options.seeds.split(",")):
        prepared = prepare(panel, split, config, seed=seed)
        validation = prepared.windows.decision_rows(prepared.split.validation, labelled=True)
        found: dict[str, tuple[float, float, float]] = {}
        for precision in ("32-true", "bf16-mixed"):
            chosen = build(config.model_dump(), {"training": {"precision": precision}})
            started = time.perf_counter()
            selector, _ = learn.train(prepared, chosen, seed)
            seconds = time.perf_counter() - started
            scores = learn.score(selector, prepared, validation, chosen).regression
            daily = daily_ic(scores, prepared.windows.targets[validation])
            found[precision] = (float(np.nanmean(daily)), standard_error(daily, None), seconds)
        (ic, error, full), (other, _, short) = found["32-true"], found["bf16-mixed"]
        rows.append(
            {"seed": seed, "float32": ic, "bfloat16": other, "standard_error": error, "time": short / full}
        )
        print(
            f"seed {seed}: validation IC float32 {ic:+.4f}, bfloat16 {other:+.4f}, difference "
            f"{other - ic:+.4f}, "
            f"standard error {error:.4f}; time of bfloat16 {short / full:.2f} of float32"
        )
    write_text(
        RESULT, json.dumps({"settings": vars(options), "torch": torch.__version__, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
