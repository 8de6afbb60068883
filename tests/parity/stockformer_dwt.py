"""Stockformer's wavelet split, temporal index, test metrics and losses."""

from typing import Any

import numpy as np
import torch

from manyhead.stocks.calendar import running_index
from manyhead.stocks.losses import official_cross_entropy, official_masked_mae
from manyhead.stocks.metrics import official_errors
from manyhead.stocks.wavelet import filter_bank, wavelet_split
from tests.parity.compare import Golden

LIMITS = {"te_raw": 1e-12, "sym2": 1e-9, "metric": 1e-6, "loss": 1e-6}


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    for index, case in enumerate(arrays["config"]["cases"]):
        windows = torch.from_numpy(arrays[f"x{index}"]).float()
        low, high = wavelet_split(windows, axis=1, wave=case["wave"], level=case["level"])
        pairs[f"low{index}"] = (low, arrays[f"low{index}"])
        pairs[f"high{index}"] = (high, arrays[f"high{index}"])
        pairs[f"sum{index}"] = (low + high, windows)
    names = ("sym2_dec_lo", "sym2_dec_hi", "sym2_rec_lo", "sym2_rec_hi")
    for name, taps in zip(names, filter_bank("sym2"), strict=True):
        pairs[name] = (taps, arrays[name])
    official_index = arrays["te_raw"]
    pairs["te_raw"] = (running_index(len(official_index)).astype(official_index.dtype), official_index)

    prediction, label = arrays["metric_reg_pred"], arrays["metric_reg_label"]
    logits, classes = arrays["metric_class_pred"], arrays["metric_class_label"]
    ours = np.array(official_errors(prediction, label, logits, classes))
    pairs["metric_out_acc_mae_rmse_mape"] = (ours, arrays["metric_out_acc_mae_rmse_mape"])
    mae = official_masked_mae(torch.from_numpy(prediction), torch.from_numpy(label))
    pairs["loss_masked_mae"] = (mae, arrays["loss_masked_mae"])
    entropy = official_cross_entropy(torch.from_numpy(logits), torch.from_numpy(classes))
    pairs["loss_ce"] = (entropy, arrays["loss_ce"])
    return pairs
