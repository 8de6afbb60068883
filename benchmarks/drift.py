"""How often does the input alarm ring on real prices? Rolling splits, their last 60 test days.

    python benchmarks/drift.py --prices sp500 --universe 30 --step 30

prints a line a split: the 60 days, how many inputs drifted, and the one that came nearest to its threshold.
"""

import argparse
import time

from manyhead.stocks.config import build
from manyhead.stocks.live.drift import input_drift, reference
from manyhead.stocks.pipeline import load_panel
from manyhead.stocks.prepare import prepare
from manyhead.stocks.splits import choose_splits


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prices", default="sp500")
    options.add_argument("--start", default="2012-01-01")
    options.add_argument("--universe", type=int, default=30)
    options.add_argument("--step", type=int, default=30, help="days between splits")
    given = options.parse_args()
    config = build(
        {
            "data": {"prices": given.prices, "start": given.start},
            "universe": {"count": given.universe},
            "splits": {"count": "all", "step": given.step},
            "relations": {"kind": "none"},
        }
    )
    began = time.process_time()
    panel, _ = load_panel(config)
    splits = choose_splits(config, panel.days)
    rung = 0
    for split in splits.values():
        ready = prepare(panel, split, config)
        found = input_drift(reference(ready), ready, ready.split.test)
        near = found["nearest"]
        rung += bool(found["drifted"])
        print(
            f"{found['first']} to {found['last']}  {len(found['drifted'])} of {found['inputs']} drifted; "
            f"nearest: {near['input']} at {near['share of its threshold']:.2f} of its threshold"
        )
    print(f"{rung} alarms in {len(splits)} splits, {time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
