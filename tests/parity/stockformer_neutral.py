"""Neutralisation by size and sector, then the day's z-score, against the released pre-processing."""

from typing import Any

import numpy as np

from manyhead.stocks.preprocess.daily import standardised
from manyhead.stocks.preprocess.neutralise import residual, sector_codes


def run(arrays: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare every factor by itself, so that a small one cannot hide behind a large one."""
    sectors = sector_codes(arrays["in_industry"].tolist())
    size = np.log(arrays["in_cap"])
    ours = np.stack(
        [
            standardised(residual(factor.T, size[day], sectors)).T
            for day, factor in enumerate(arrays["in_factor"])
        ]
    )
    return {f"factor{f}": (ours[..., f], arrays["out"][..., f]) for f in range(ours.shape[-1])}
