"""Stockformer: all stocks at once, two frequencies of their returns, two forecasts.

Ma, Xue, Lu and Chen, 'Stockformer: A Price-Volume Factor Stock Selection Model Based on Wavelet Transform
and Multi-Task Self-Attention Networks', 2024, arXiv 2401.06139, Expert Systems with Applications 273:126803.
The computation is that of the released code, so that its checkpoints work; where paper and code differ, the
paper's reading is an option. Notable here:
- one path from input to output: embed -> L x (time, then stocks) -> predict days -> fuse -> heads;
- activations are (batch, days, stocks, dim) from end to end; only attention over days copies them by stock;
- under autocast everything between input and heads runs in the autocast precision.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.stocks.network.convolution import CausalConvolution
from manyhead.stocks.network.fusion import AdaptiveFusion, Predictor
from manyhead.stocks.network.layers import FeedForward, cast, linear
from manyhead.stocks.network.spatial import SpatialAttention
from manyhead.stocks.network.temporal import TemporalAttention, TemporalEmbedding


class Forecast(NamedTuple):
    """What Stockformer predicts for the output days, from both frequencies and from the low one alone.

    `class_logits` and `class_logits_low` are `(batch, T2, stocks, classes)`, `returns` and `returns_low`
    `(batch, T2, stocks)`.
    """

    class_logits: Tensor
    class_logits_low: Tensor
    returns: Tensor
    returns_low: Tensor


class StartEmbedding(nn.Module):
    """FF(features, D, D) for either branch, whose inputs differ in the first column only.

    The factors are never copied beside the other columns: they are multiplied where they lie.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, 2 * dim)  # rows: low, then high; columns: x, trend, factors
        self.second_low = nn.Linear(dim, dim)
        self.second_high = nn.Linear(dim, dim)

    def forward(self, low: Tensor, high: Tensor, trend: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = cast(self.first.weight, bonus).chunk(2), cast(self.first.bias, bonus).chunk(2)
        branches = []
        for x, weight, bias, second in zip(
            (low, high), weights, biases, (self.second_low, self.second_high), strict=True
        ):
            hidden = torch.addmm(bias, bonus.flatten(0, 2), weight[:, 2:].t())
            own = torch.stack([x, trend], -1).flatten(0, 2)  # two columns, added in place of a concatenation
            hidden.addmm_(own, weight[:, :2].t()).relu_()
            branches.append(linear(hidden, second).view(*x.shape, -1))
        return branches[0], branches[1]


class EncoderLayer(nn.Module):
    """Attention over days (low) and convolution over days (high), then attention over stocks in each branch.

    Args:
        dim, head_dim, dropout: as in `Stockformer`.
        temporal: without it both branches skip the step over days (an ablation of the paper).
        st_temporal: the spatial attention also sees the days' embedding, as the paper writes it.
    """

    def __init__(self, dim: int, head_dim: int, dropout: float, temporal: bool, st_temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.st_temporal = st_temporal
        self.attention = TemporalAttention(dim, head_dim)
        self.convolution = CausalConvolution(dim, dropout)
        self.spatial_low = SpatialAttention(dim, head_dim)
        self.spatial_high = SpatialAttention(dim, head_dim)

    def forward(
        self, low: Tensor, high: Tensor, te: Tensor, adjgat: Tensor, available: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.temporal:
            low, high = self.attention(low, te), self.convolution(high)
        position = adjgat + te if self.st_temporal else adjgat
        return (
            low + self.spatial_low(low, position, available),
            high + self.spatial_high(high, position, available),
        )

    def mean_weights(
        self, low: Tensor, high: Tensor, te: Tensor, adjgat: Tensor, available: Tensor | None = None
    ) -> Tensor:
        """Spatial attention of both branches averaged over batch and days, `(2, stocks, stocks)`."""
        if self.temporal:
            low, high = self.attention(low, te), self.convolution(high)
        position = adjgat + te if self.st_temporal else adjgat
        branches = (self.spatial_low, low), (self.spatial_high, high)
        return torch.stack([branch.mean_weights(x, position, available) for branch, x in branches])


class Stockformer(nn.Module):
    """Returns and directions of all stocks over the next days, from prices' factors and two frequencies.

    Args:
        features: columns of the input: return, trend and factors (`bonus` has `features - 2`).
        dim: width D.
        layers: encoder layers L.
        input_days: T1.
        output_days: T2.
        classes: classes of the direction head.
        head_dim: the released code's `d`: scores are divided by its root. Defaults to `dim`; the released
            code never splits D into heads.
        dropout: after the temporal convolution, nowhere else.
        decouple: False feeds `low + high` to both branches (ablation 'without decoupling').
        temporal: False leaves out temporal attention and convolution (ablation).
        fusion: 'attention', or 'addition' of the two frequencies (ablation).
        fusion_self: the paper's low-frequency self-attention in the fusion, absent from the released code.
        st_temporal: the days' embedding inside spatial attention, absent from the released code.

    The graph is the input `adjgat`; zeros are the ablation 'without graph'. Single-task training is a matter
    of the loss: the outputs stay.

    Gradients are first-order and not batched (no double backward, no vmap); where more is wanted,
    `reference.stockformer_reference` on `official.official_views` differentiates the same parameters.

    Raises:
        InputError: for sizes below their minimum, a dropout outside [0, 1), an unknown fusion, or
            inputs whose shapes do not fit together.
    """

    def __init__(
        self,
        features: int,
        dim: int = 128,
        layers: int = 2,
        input_days: int = 20,
        output_days: int = 2,
        classes: int = 2,
        *,
        head_dim: int | None = None,
        dropout: float = 0.2,
        decouple: bool = True,
        temporal: bool = True,
        fusion: Literal["attention", "addition"] = "attention",
        fusion_self: bool = False,
        st_temporal: bool = False,
    ) -> None:
        super().__init__()
        head_dim = dim if head_dim is None else head_dim
        sizes = {"dim": dim, "layers": layers, "input_days": input_days, "output_days": output_days}
        for name, size in (sizes | {"classes": classes, "head_dim": head_dim}).items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if features < 2:
            raise InputError(f"features counts return, trend and factors: at least 2, got {features}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {dropout}")
        if fusion not in ("attention", "addition"):
            raise InputError(f"fusion must be 'attention' or 'addition', got {fusion!r}")
        self.features, self.dim, self.classes = features, dim, classes
        self.input_days, self.output_days = input_days, output_days
        self.decouple = decouple
        self.start = StartEmbedding(features, dim)
        self.day = TemporalEmbedding(dim)
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, head_dim, dropout, temporal, st_temporal) for _ in range(layers)
        )
        self.predict_low = Predictor(input_days, output_days)
        self.predict_high = Predictor(input_days, output_days)
        self.fusion = AdaptiveFusion(dim, head_dim, fusion_self) if fusion == "attention" else None
        self.class_head = FeedForward(dim, dim, classes)
        self.return_head = FeedForward(dim, dim, 1)

    def forward(
        self,
        low: Tensor,
        high: Tensor,
        te: Tensor,
        bonus: Tensor,
        trend: Tensor,
        adjgat: Tensor,
        available: Tensor | None = None,
    ) -> Forecast:
        """Forecast the output days.

        Args:
            low, high: the two frequencies of the stocks' returns, which they sum to, `(batch, T1, stocks)`.
            te: temporal index of input and output days, `(batch, T1 + T2, 2)`, integers.
            bonus: factors, `(batch, T1, stocks, features - 2)`.
            trend: 1 where the return is positive, else 0, `(batch, T1, stocks)`.
            adjgat: the stocks' graph embedding, `(stocks, dim)`.
            available: `(batch, T1, stocks)` Booleans; absent stocks are not attended to. None is the released
                code: every stock is there every day.
        """
        dtype = self._precision(low, high, te, bonus, trend, adjgat, available)
        with torch.autocast(low.device.type, enabled=False):
            day = self.day(te, dtype)
            low, high = self._encode(low, high, day, bonus, trend, adjgat, available)
            after = day[:, self.input_days :]
            low, high = self.predict_low(low) + after, self.predict_high(high) + after
            fused = low + high if self.fusion is None else self.fusion(low, high)
            outputs = (
                self.class_head(fused),
                self.class_head(low),
                self.return_head(fused).squeeze(-1),
                self.return_head(low).squeeze(-1),
            )
        return Forecast(*(output.to(torch.promote_types(dtype, torch.float32)) for output in outputs))

    @torch.no_grad()
    def spatial_attention(
        self,
        low: Tensor,
        high: Tensor,
        te: Tensor,
        bonus: Tensor,
        trend: Tensor,
        adjgat: Tensor,
        available: Tensor | None = None,
    ) -> Tensor:
        """Which stocks attend to which, averaged over batch and days.

        Takes what `forward` takes.

        Returns:
            `(layers, 2, stocks, stocks)`: layer, branch (low, high), receiving stock, attended stock. Row n
            is the mean of the rows A[i*(n)] that stock n copies; rows sum to 1.
        """
        dtype = self._precision(low, high, te, bonus, trend, adjgat, available)
        with torch.autocast(low.device.type, enabled=False):
            seen: list[Tensor] = []
            self._encode(low, high, self.day(te, dtype), bonus, trend, adjgat, available, seen)
        return torch.stack(seen)

    def _encode(
        self,
        low: Tensor,
        high: Tensor,
        day: Tensor,
        bonus: Tensor,
        trend: Tensor,
        adjgat: Tensor,
        available: Tensor | None,
        seen: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both branches after the last layer; `seen` takes every layer's mean spatial attention."""
        low, high, bonus, trend, adjgat = (x.to(day.dtype) for x in (low, high, bonus, trend, adjgat))
        if not self.decouple:
            low = high = low + high
        low, high = self.start(low, high, trend, bonus)
        before = day[:, : self.input_days]
        for layer in self.encoder:
            assert isinstance(layer, EncoderLayer)
            if seen is not None:
                seen.append(layer.mean_weights(low, high, before, adjgat, available))
            low, high = layer(low, high, before, adjgat, available)
        return low, high

    def _precision(
        self,
        low: Tensor,
        high: Tensor,
        te: Tensor,
        bonus: Tensor,
        trend: Tensor,
        adjgat: Tensor,
        available: Tensor | None,
    ) -> torch.dtype:
        """The precision to compute in, after a check that the inputs fit together."""
        if low.ndim != 3 or 0 in low.shape:
            raise InputError(f"low must have shape (batch, days, stocks), none empty, got {tuple(low.shape)}")
        batch, _, stocks = low.shape
        expected = {
            "low": (low, (batch, self.input_days, stocks)),
            "high": (high, (batch, self.input_days, stocks)),
            "te": (te, (batch, self.input_days + self.output_days, 2)),
            "bonus": (bonus, (batch, self.input_days, stocks, self.features - 2)),
            "trend": (trend, (batch, self.input_days, stocks)),
            "adjgat": (adjgat, (stocks, self.dim)),
        }
        if available is not None:
            expected["available"] = (available, (batch, self.input_days, stocks))
        for name, (given, shape) in expected.items():
            if tuple(given.shape) != shape:
                raise InputError(f"{name} must have shape {shape}, got {tuple(given.shape)}")
        device = low.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else low.dtype
