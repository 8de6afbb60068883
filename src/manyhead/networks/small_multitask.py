"""A plain convolutional network of several tasks: what is cut out of a controllable model, and its file.

Written as `model.safetensors` and `shape.json`, it is loaded without the model that it came from.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, relu

from manyhead.errors import InputError
from manyhead.files import write_bytes, write_text

Norm = Literal["batch", "group", "layer"]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of one task's decoder.

    Args:
        hidden: channels after its convolution and, for labels, of its hidden linear layer.
        outputs: size of the prediction.
        dense: whether the prediction is a map of the image's size.
    """

    hidden: int
    outputs: int
    dense: bool = False


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of a network of several tasks.

    Args:
        inputs: channels of the image.
        image: height and width of the image, for counting.
        channels: of each stage.
        strides: of each stage.
        decoders: by task.
        pool: a decoder of labels reads the mean of each of pool x pool parts of its map.
        norm: normalisation after each 3 x 3 convolution.
        group: channels of a group, for 'group'.
    """

    inputs: int
    image: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoders: Mapping[str, DecoderShape]
    pool: int = 1
    norm: Norm = "batch"
    group: int = 4

    def cost(self) -> int:
        """Multiply-adds of convolutions and linear maps for one image."""
        total, side, before = 0, self.image, self.inputs
        for channels, stride in zip(self.channels, self.strides, strict=True):
            side = -(-side // stride)
            total += 9 * before * channels * side**2
            before = channels
        for decoder in self.decoders.values():
            total += 9 * before * decoder.hidden * side**2
            if decoder.dense:
                total += decoder.hidden * decoder.outputs * side**2
            else:
                total += decoder.hidden * (self.pool**2 * decoder.hidden + decoder.outputs)
        return total

    def to_json(self) -> str:
        """The sizes as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "NetworkShape":
        """Read what `to_json` wrote.

        Raises:
            InputError: if it is something else.
        """
        try:
            held: dict[str, Any] = json.loads(text)
            decoders = {name: DecoderShape(**sizes) for name, sizes in held.pop("decoders").items()}
            channels, strides = tuple(held.pop("channels")), tuple(held.pop("strides"))
            return cls(channels=channels, strides=strides, decoders=decoders, **held)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"not the shape of a network of several tasks: {error!r}") from error


class Stage(nn.Module):
    """A 3 x 3 convolution, a normalisation and a ReLU.

    Args:
        convolution, norm: ordinary layers, or slimmable ones.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """A map (batch, channels, h, w); `channels` is for slimmable layers alone."""
        if channels is None:
            return relu(self.norm(self.convolution(x)))
        return relu(self.norm(self.convolution(x, channels), x.shape[1]))


class LabelDecoder(nn.Module):
    """A stage, the means of pool x pool parts of its map, and two linear maps.

    Args:
        stage, first, last: ordinary layers, or slimmable ones.
        pool: parts along each axis.
    """

    def __init__(self, stage: Stage, first: nn.Module, last: nn.Module, pool: int) -> None:
        super().__init__()
        self.stage, self.first, self.last, self.pool = stage, first, last, pool

    def forward(self, x: Tensor, image: tuple[int, int], channels: int | None = None) -> Tensor:
        """Predictions (batch, outputs) from a map; the size of the image does not matter."""
        pooled = adaptive_avg_pool2d(self.stage(x, channels), self.pool).flatten(1)
        hidden = relu(self.first(pooled) if channels is None else self.first(pooled, channels))
        out: Tensor = self.last(hidden)
        return out


class MapDecoder(nn.Module):
    """A stage, a pointwise convolution and bilinear up-sampling to the image's size.

    Args:
        stage, last: ordinary layers, or slimmable ones.
    """

    def __init__(self, stage: Stage, last: nn.Module) -> None:
        super().__init__()
        self.stage, self.last = stage, last

    def forward(self, x: Tensor, image: tuple[int, int], channels: int | None = None) -> Tensor:
        """Predictions (batch, outputs, *image)."""
        return interpolate(self.last(self.stage(x, channels)), size=image, mode="bilinear")


class SmallMultiTask(nn.Module):
    """An encoder of convolutional stages under a decoder for each task.

    Args:
        shape: its sizes.

    Shape:
        images `(batch, inputs, h, w)`; by task, labels `(batch, outputs)` or maps `(batch, outputs, h, w)`.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        widths = [shape.inputs, *shape.channels]
        self.stages = nn.ModuleList(
            Stage(nn.Conv2d(a, b, 3, stride, 1), self._norm(b))
            for a, b, stride in zip(widths[:-1], widths[1:], shape.strides, strict=True)
        )
        self.decoders = nn.ModuleDict({name: self._decoder(sizes) for name, sizes in shape.decoders.items()})

    def _norm(self, channels: int) -> nn.Module:
        if self.shape.norm == "batch":
            return nn.BatchNorm2d(channels)
        return nn.GroupNorm(1 if self.shape.norm == "layer" else channels // self.shape.group, channels)

    def _decoder(self, sizes: DecoderShape) -> nn.Module:
        hidden = sizes.hidden
        stage = Stage(nn.Conv2d(self.shape.channels[-1], hidden, 3, 1, 1), self._norm(hidden))
        if sizes.dense:
            return MapDecoder(stage, nn.Conv2d(hidden, sizes.outputs, 1))
        first = nn.Linear(hidden * self.shape.pool**2, hidden)
        return LabelDecoder(stage, first, nn.Linear(hidden, sizes.outputs), self.shape.pool)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Every task's prediction."""
        x = image
        for stage in self.stages:
            x = stage(x)
        size = (image.shape[-2], image.shape[-1])
        return {name: decoder(x, size) for name, decoder in self.decoders.items()}

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `shape.json`, each whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        write_bytes(
            folder / "model.safetensors",
            save({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}),
        )
        write_text(folder / "shape.json", self.shape.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> "SmallMultiTask":
        """Read what `save` wrote; the network is in evaluation mode.

        Raises:
            InputError: if a file is missing or damaged, or they do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        try:
            model = cls(NetworkShape.from_json((folder / "shape.json").read_text(encoding="utf-8")))
            model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{folder} does not hold a small multi-task model: {error}") from error
        return model.eval()


@torch.no_grad()
def calibrate(
    model: nn.Module, images: Tensor, batch: int = 256, run: Callable[[Tensor], object] | None = None
) -> None:
    """Compute the running statistics of batch normalisation anew, as the mean over batches.

    Args:
        model: an ordinary network, such as one that was cut out of a wider one.
        images: what it is run on.
        batch: images at once; a last batch that is smaller is left out.
        run: what to do with a batch; `model` itself if left out.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    held, training = [norm.momentum for norm in norms], model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for part in images.split(batch):
        if len(part) == min(batch, len(images)):
            (run or model)(part)
    for norm, momentum in zip(norms, held, strict=True):
        norm.momentum = momentum
    model.train(training)
