"""A stock selector: Stockformer with what one split fixes (node vectors, wavelet), losses and scores."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyhead.stocks.config import Config
from manyhead.stocks.dataset import Batch, Windows
from manyhead.stocks.losses import (
    masked_cross_entropy,
    masked_mae,
    official_cross_entropy,
    official_masked_mae,
)
from manyhead.stocks.network import Forecast, Stockformer
from manyhead.stocks.wavelet import wavelet_split

# one decision day at a time: the bits of a score must not depend on which days are scored beside it
SCORING_BATCH = 1


class Selector(nn.Module):
    """Stockformer bound to one split.

    Args:
        network: the network.
        nodes: (N, D) fixed node vectors.
        wavelet: name of the wavelet that splits the returns.
        loss: 'available' counts the cells whose return exists; 'official' does as the released code.
        tasks: which losses are trained.
    """

    nodes: Tensor

    def __init__(
        self,
        network: Stockformer,
        nodes: Tensor,
        wavelet: str = "sym2",
        loss: Literal["available", "official"] = "available",
        tasks: tuple[str, ...] = ("regression", "classification"),
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("nodes", nodes)
        self.wavelet = wavelet
        self.loss = loss
        self.tasks = tasks

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the output days of a batch of windows."""
        low, high = self._split(batch.returns)
        forecast: Forecast = self.network(low, high, batch.time, batch.factors, batch.trend, self.nodes)
        return forecast

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each task, fused and low-frequency outputs summed (Stockformer, section 3.5)."""
        forecast = self(batch)
        slow, _ = self._split(batch.flow)
        up = (batch.flow > 0).long()
        losses: dict[str, Tensor] = {}
        if self.loss == "official":
            regression = official_masked_mae(forecast.returns, batch.flow)
            regression = regression + official_masked_mae(forecast.returns_low, slow)
            classification = official_cross_entropy(forecast.class_logits, up)
            classification = classification + official_cross_entropy(forecast.class_logits_low, up)
        else:
            regression = masked_mae(forecast.returns, batch.flow, batch.known)
            regression = regression + masked_mae(forecast.returns_low, slow, batch.known)
            classification = masked_cross_entropy(forecast.class_logits, up, batch.known)
            classification = classification + masked_cross_entropy(forecast.class_logits_low, up, batch.known)
        if "regression" in self.tasks:
            losses["regression"] = regression
        if "classification" in self.tasks:
            losses["classification"] = classification
        return losses

    def _split(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high frequencies, in full precision also under autocast: they must sum to the returns."""
        with torch.autocast(returns.device.type, enabled=False):
            return wavelet_split(returns, wave=self.wavelet)

    @torch.no_grad()
    def score(
        self, windows: Windows, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score decision rows.

        Returns:
            forecast return and probability of a rise on each decision row, each (len(rows), N).
        """
        was_training = self.training
        self.eval()
        step = windows.alignment.step
        returns, rises = [], []
        for start in range(0, len(rows), SCORING_BATCH):
            forecast = self(windows.batch(rows[start : start + SCORING_BATCH]).to(self.nodes.device))
            returns.append(forecast.returns[:, step].float().cpu())
            rises.append(forecast.class_logits[:, step].float().softmax(-1)[..., 1].cpu())
        self.train(was_training)
        if not returns:
            empty = np.empty((0, len(self.nodes)), np.float32)
            return empty, empty
        return torch.cat(returns).numpy(), torch.cat(rises).numpy()


def build_selector(config: Config, features: int, nodes: NDArray[np.float32], seed: int) -> Selector:
    """Build the selector that a configuration asks for, its weights drawn under `seed`.

    Args:
        config: settings of the run.
        features: number of factors.
        nodes: (N, dim) node vectors.
        seed: of the initial weights.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Stockformer(
            features + 2,
            model.dim,
            model.layers,
            model.input_days,
            model.output_days,
            dropout=model.dropout,
            decouple=model.decouple,
            fusion=model.fusion,
            fusion_self=model.fusion_self,
            st_temporal=model.st_temporal,
        )
    return Selector(network, torch.from_numpy(nodes), model.wavelet, config.training.loss, tuple(model.tasks))
