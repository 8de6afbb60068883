"""The controllable multi-task network: one training, then any width of encoder and decoders.

'Efficient Controllable Multi-Task Architectures', 2023, arXiv 2308.11744. All layers are slimmable; a
sub-network is told by one width ratio for each encoder stage and one for each task's decoder. It is trained
by `manyhead.tasks.Sandwich`; `extract` turns a preference over tasks and a budget of multiply-adds into an
ordinary small network (`manyhead.networks.width_search` tells how), no masks involved.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.layers.slimmable import (
    SlicedBatchNorm2d,
    SlicedGroupNorm,
    SlimmableConv2d,
    SlimmableLinear,
    SwitchableBatchNorm2d,
    channels_at,
)
from manyhead.networks.small_multitask import (
    DecoderShape,
    LabelDecoder,
    MapDecoder,
    NetworkShape,
    SmallMultiTask,
    Stage,
    calibrate,
)

if TYPE_CHECKING:
    from manyhead.networks.width_search import WidthSearch

QUARTERS = (0.25, 0.5, 0.75, 1.0)
SuperNorm = Literal["switch", "batch", "group", "layer"]


@dataclass(frozen=True)
class Widths:
    """A sub-network: width ratios of the encoder's stages, and of the decoders in the order of tasks."""

    encoder: tuple[float, ...]
    decoders: tuple[float, ...]


class SuperNet(nn.Module):
    """A slimmable encoder of convolutional stages under a slimmable decoder for each task.

    Args:
        outputs: size of each task's prediction.
        dense: names of the tasks whose prediction is a map of the image's size.
        inputs: channels of the image; never slimmed.
        image: height and width of the image, for counting multiply-adds.
        channels, strides: of the stages at full width.
        hidden: width of the decoders.
        pool: a decoder of labels reads the mean of each of pool x pool parts of its map.
        encoder_widths, decoder_widths: the ratios to choose from; the largest must be 1.
        norm: 'switch' (batch normalisation with statistics for each number of channels, see `calibrate`),
            'batch' (one, whose statistics are computed anew for a sub-network), 'group' or 'layer'.
        group: channels of a group, for 'group'.

    Shape:
        images `(batch, inputs, h, w)`; by task, labels `(batch, outputs)` or maps `(batch, outputs, h, w)`.

    Raises:
        InputError: if there is no task, the widths cannot be used, or groups do not divide a width.
    """

    def __init__(
        self,
        outputs: Mapping[str, int],
        *,
        dense: Collection[str] = (),
        inputs: int = 1,
        image: int = 32,
        channels: Sequence[int] = (16, 32, 64, 64),
        strides: Sequence[int] = (2, 2, 2, 1),
        hidden: int = 64,
        pool: int = 1,
        encoder_widths: Sequence[float] = QUARTERS,
        decoder_widths: Sequence[float] = QUARTERS,
        norm: SuperNorm = "switch",
        group: int = 4,
    ) -> None:
        super().__init__()
        if not outputs or not set(dense) <= set(outputs):
            raise InputError(f"outputs must name a task, and those that are dense; got {outputs}, {dense}")
        if len(channels) != len(strides) or not channels:
            raise InputError(f"channels and strides must be given for each stage, got {channels}, {strides}")
        if norm not in ("switch", "batch", "group", "layer"):
            raise InputError(f"norm must be 'switch', 'batch', 'group' or 'layer', got {norm!r}")
        self.encoder_widths = check_widths("encoder_widths", encoder_widths)
        self.decoder_widths = check_widths("decoder_widths", decoder_widths)
        self.full_shape = NetworkShape(
            inputs,
            image,
            tuple(channels),
            tuple(strides),
            {task: DecoderShape(hidden, size, task in dense) for task, size in outputs.items()},
            pool,
            "batch" if norm == "switch" else norm,
            group,
        )
        self.norm = norm
        before = [inputs, *channels]
        self.stages = nn.ModuleList(
            Stage(SlimmableConv2d(a, b, 3, stride), self._norm(a, b, self.encoder_widths, first=number == 0))
            for number, (a, b, stride) in enumerate(zip(before[:-1], before[1:], strides, strict=True))
        )
        self.decoders = nn.ModuleDict(
            {task: self._decoder(size, task in dense) for task, size in outputs.items()}
        )

    def _norm(self, inputs: int, channels: int, widths: Sequence[float], first: bool = False) -> nn.Module:
        counts = [channels_at(channels, ratio) for ratio in widths]
        if self.norm == "switch":
            entering = [inputs] if first else [channels_at(inputs, ratio) for ratio in self.encoder_widths]
            return SwitchableBatchNorm2d(entering, counts)
        if self.norm == "batch":
            return SlicedBatchNorm2d(channels)
        made = SlicedGroupNorm(channels, self.full_shape.group if self.norm == "group" else None)
        for count in counts:
            made.groups(count)  # refuses a width that groups do not divide
        return made

    def _decoder(self, outputs: int, dense: bool) -> nn.Module:
        shape = self.full_shape
        hidden = next(iter(shape.decoders.values())).hidden
        norm = self._norm(shape.channels[-1], hidden, self.decoder_widths)
        stage = Stage(SlimmableConv2d(shape.channels[-1], hidden), norm)
        if dense:
            return MapDecoder(stage, SlimmableConv2d(hidden, outputs, 1))
        # channels are the slow axis of what is flattened, so the first channels are the first inputs
        first = SlimmableLinear(hidden * shape.pool**2, hidden)
        return LabelDecoder(stage, first, SlimmableLinear(hidden, outputs), shape.pool)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order."""
        return list(self.decoders)

    @property
    def full(self) -> Widths:
        """Every ratio 1."""
        return Widths((1.0,) * len(self.stages), (1.0,) * len(self.decoders))

    @property
    def smallest(self) -> Widths:
        """Every ratio the least one."""
        return Widths(
            (self.encoder_widths[0],) * len(self.stages), (self.decoder_widths[0],) * len(self.decoders)
        )

    def random(self, generator: torch.Generator | None = None, layerwise: bool = False) -> Widths:
        """A sub-network by chance: one ratio for the encoder, or for each stage if `layerwise`."""

        def draw(ratios: Sequence[float], count: int) -> tuple[float, ...]:
            return tuple(
                ratios[i] for i in torch.randint(len(ratios), (count,), generator=generator).tolist()
            )

        stages = len(self.stages)
        encoder = draw(self.encoder_widths, stages if layerwise else 1)
        return Widths(
            encoder if layerwise else encoder * stages, draw(self.decoder_widths, len(self.decoders))
        )

    def check(self, widths: Widths) -> None:
        """Refuse a sub-network that this network does not have.

        Raises:
            InputError: if ratios are missing or not among those to choose from.
        """
        for name, given, count, known in (
            ("encoder", widths.encoder, len(self.stages), self.encoder_widths),
            ("decoders", widths.decoders, len(self.decoders), self.decoder_widths),
        ):
            if len(given) != count or not set(given) <= set(known):
                raise InputError(f"{name} must be {count} ratios out of {known}, got {given}")

    def encode(self, image: Tensor, widths: Widths | None = None) -> list[Tensor]:
        """The map after each stage, `(batch, channels, h, w)`."""
        x, maps = image, []
        chosen = widths or self.full
        for stage, most, ratio in zip(self.stages, self.full_shape.channels, chosen.encoder, strict=True):
            x = stage(x, channels_at(most, ratio))
            maps.append(x)
        return maps

    def decode(
        self, feature: Tensor, image: tuple[int, int], widths: Widths | None = None
    ) -> dict[str, Tensor]:
        """Every task's prediction from the last map."""
        chosen = widths or self.full
        return {
            task: decoder(feature, image, channels_at(self.full_shape.decoders[task].hidden, ratio))
            for (task, decoder), ratio in zip(self.decoders.items(), chosen.decoders, strict=True)
        }

    def forward(self, image: Tensor, widths: Widths | None = None) -> dict[str, Tensor]:
        """Every task's prediction by a sub-network, the whole network if none is told."""
        if widths is not None:
            self.check(widths)
        return self.decode(self.encode(image, widths)[-1], (image.shape[-2], image.shape[-1]), widths)

    def calibrate(self, images: Tensor, batch: int = 256) -> None:
        """Compute the statistics of batch normalisation anew at every width with one ratio for the encoder.

        With norm 'switch' these are exact for all such sub-networks, as a decoder's depend on the widths of
        encoder and decoder alone; with 'batch' only those of the whole network are kept.

        Args:
            images: what the network is run on.
            batch: images at once.
        """
        stages, tasks = len(self.stages), len(self.decoders)
        every = [
            Widths((e,) * stages, (d,) * tasks) for e in self.encoder_widths for d in self.decoder_widths
        ]

        def run(part: Tensor) -> None:
            for widths in every if self.norm == "switch" else [self.full]:
                self(part, widths)

        calibrate(self, images, batch, run)

    def shape(self, widths: Widths | None = None) -> NetworkShape:
        """The sizes of a sub-network."""
        whole, chosen = self.full_shape, widths or self.full
        self.check(chosen)
        return NetworkShape(
            whole.inputs,
            whole.image,
            tuple(channels_at(c, r) for c, r in zip(whole.channels, chosen.encoder, strict=True)),
            whole.strides,
            {
                task: DecoderShape(channels_at(held.hidden, ratio), held.outputs, held.dense)
                for (task, held), ratio in zip(whole.decoders.items(), chosen.decoders, strict=True)
            },
            whole.pool,
            whole.norm,
            whole.group,
        )

    def cost(self, widths: Widths | None = None) -> int:
        """Multiply-adds of a sub-network for one image."""
        return self.shape(widths).cost()

    def cut(self, widths: Widths) -> SmallMultiTask:
        """An ordinary network with copies of the weights that a sub-network uses."""
        shape = self.shape(widths)
        with torch.device("meta"):
            small = SmallMultiTask(shape)
        before = shape.inputs
        for number, channels in enumerate(shape.channels):
            small.stages[number] = self._cut_stage(self.stages[number], before, channels)
            before = channels
        for task, held in shape.decoders.items():
            source = self.decoders[task]
            stage = self._cut_stage(source.stage, before, held.hidden)  # type: ignore[arg-type]
            if held.dense:
                small.decoders[task] = MapDecoder(stage, source.last.cut(held.hidden, held.outputs))  # type: ignore[operator,union-attr]
            else:
                first = source.first.cut(held.hidden * shape.pool**2, held.hidden)  # type: ignore[operator,union-attr]
                last = source.last.cut(held.hidden)  # type: ignore[operator,union-attr]
                small.decoders[task] = LabelDecoder(stage, first, last, shape.pool)
        return small.train(self.training)

    def _cut_stage(self, stage: nn.Module, inputs: int, channels: int) -> Stage:
        convolution, norm = stage.convolution, stage.norm
        return Stage(convolution.cut(inputs, channels), norm.cut(inputs, channels))  # type: ignore[operator,union-attr]

    def extract(
        self,
        preference: Mapping[str, float],
        budget: float,
        search: "WidthSearch | None" = None,
    ) -> SmallMultiTask:
        """The small network for a preference and a budget.

        Args:
            preference: how much each task matters, not negative, not all zero; only ratios count.
            budget: multiply-adds of one image at most.
            search: how encoder widths are chosen; the largest that fit if left out.

        Raises:
            InputError: if a task is missing, or even the smallest network costs more.
        """
        from manyhead.networks.width_search import WidthSearch

        return (search or WidthSearch(self)).extract(preference, budget)


def check_widths(name: str, ratios: Sequence[float]) -> tuple[float, ...]:
    """Width ratios in rising order.

    Raises:
        InputError: if one is not within 0 to 1, comes twice, or 1 is missing.
    """
    found = tuple(sorted(float(ratio) for ratio in ratios))
    if not found or found[0] <= 0 or found[-1] != 1 or len(set(found)) != len(found):
        raise InputError(f"{name} must be different ratios above 0 with 1 the largest, got {tuple(ratios)}")
    return found
