"""How much every mixer may spend: the same sizes and numbers of steps for all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Sizes of one benchmark.

    Args:
        channels, heads: of every mixer.
        depth: layers.
        length: characters of a sample of text; a line to reverse has a quarter, a forecast looks back as
            many days as a quarter and forward a quarter of that.
        batch: samples of a step.
        steps: steps of training; tasks with short samples take more, see `Task.pace`.
        tests: batches of held-out data.
        rate: highest learning rate; it rises for a tenth of the steps, then falls to zero.
        lengths: tokens at which time and memory are measured.
        repeats: measurements of each, of which the median counts.
    """

    channels: int
    heads: int
    depth: int
    length: int
    batch: int
    steps: int
    tests: int
    rate: float
    lengths: tuple[int, ...]
    repeats: int


BUDGETS = {
    "tiny": Budget(16, 2, 1, 64, 4, 4, 1, 3e-3, (64, 128, 192, 256), 1),
    "small": Budget(64, 4, 1, 128, 8, 160, 8, 3e-3, (256, 512, 1024, 2048, 4096), 3),
    "medium": Budget(128, 4, 2, 256, 16, 2000, 16, 2e-3, (256, 512, 1024, 2048, 4096, 8192), 3),
    "large": Budget(256, 8, 4, 512, 32, 10000, 32, 1e-3, (256, 512, 1024, 2048, 4096, 8192), 5),
}
