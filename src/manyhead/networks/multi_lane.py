"""MULTI-LANE: every task owns a lane of selector tokens and prompts over one frozen transformer.

De Min et al., 'Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental
Learning', 2024, arXiv 2405.15633, section 3. A lane summarises the frozen patch tokens at every block by a
few selectors; all lanes run in parallel at test time and each class is read from the lane of its task.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize

from manyhead.errors import InputError
from manyhead.networks.vision_transformer import Block, VisionTransformer

Replace = Literal["normalised", "reset"]


def merge_tokens(x: Tensor, at_most: int) -> Tensor:
    """Merge the most alike tokens, half of them at a time, until few are left.

    Bolya et al., 'Token Merging', 2023, arXiv 2210.09461: tokens at even places are matched to the most
    alike one at an odd place, and the best matches are averaged by the tokens that they stand for.

    Args:
        x: (batch, tokens, channels).
        at_most: tokens that may be left, at least 1.

    Returns:
        (batch, at most `at_most`, channels).
    """
    size = x.new_ones(*x.shape[:2], 1)
    while x.shape[1] > at_most:
        even, odd = x[:, ::2], x[:, 1::2]
        count = min(odd.shape[1], x.shape[1] - at_most)
        alike = normalize(even, dim=-1) @ normalize(odd, dim=-1).transpose(1, 2)
        best, partner = alike.max(-1)
        order = best.argsort(-1, descending=True)[..., None]
        gone, stay = order[:, :count], order[:, count:]
        to = partner[..., None].gather(1, gone)
        even_size, odd_size = size[:, ::2], size[:, 1::2]

        def pick(values: Tensor, rows: Tensor) -> Tensor:
            return values.gather(1, rows.expand(-1, -1, values.shape[-1]))

        weight = odd_size.scatter_add(1, to, pick(even_size, gone))
        moved = pick(even * even_size, gone)
        merged = (odd * odd_size).scatter_add(1, to.expand(-1, -1, x.shape[-1]), moved) / weight
        x = torch.cat([pick(even, stay), merged], dim=1)
        size = torch.cat([pick(even_size, stay), weight], dim=1)
    return x


class MultiLane(nn.Module):
    """Lanes of selectors and prompts over a frozen transformer.

    Args:
        backbone: pre-trained transformer; its weights are frozen here.
        classes: for each task the indices of its classes.
        selectors: selector tokens of a lane, at least 1.
        prompts: keys and values that a lane adds to a block, 0 for none.
        prompt_blocks: first blocks that have prompts.
        drop_and_replace: summarise at every block and put the selectors back after it; False summarises
            at the first block and keeps the summaries as tokens.
        replace: what stands in for a selector after a block: 'normalised' continues the residual stream
            with its layer norm, as the published code does; 'reset' takes the selector as it was trained.
        unit: bring the lane's class token to length 1 before the head.
        temperature: divisor of the logits.
        start: 'orthogonal' or 'uniform' selectors and prompts.
        merge_to: merge the image tokens to so many instead of summarising by selectors; None selects.

    Shape:
        images as the backbone takes them; logits `(batch, classes)`.

    Raises:
        InputError: if the classes of the tasks are not 0 to n-1 without repetition, or a number cannot be
            used.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        classes: Sequence[Sequence[int]],
        selectors: int = 20,
        prompts: int = 20,
        prompt_blocks: int = 5,
        *,
        drop_and_replace: bool = True,
        replace: Replace = "normalised",
        unit: bool = True,
        temperature: float = 1.0,
        start: Literal["orthogonal", "uniform"] = "orthogonal",
        merge_to: int | None = None,
    ) -> None:
        super().__init__()
        count = sum(map(len, classes))
        if sorted(index for own in classes for index in own) != list(range(count)) or not count:
            raise InputError(f"the tasks' classes must be 0 to {count - 1}, each once; got {list(classes)}")
        if selectors < 1 or prompts < 0 or not 0 <= prompt_blocks <= backbone.depth:
            raise InputError(
                f"a lane has at least 1 selector, 0 or more prompts and prompts in at most {backbone.depth} "
                f"blocks; got {selectors}, {prompts} and {prompt_blocks}"
            )
        if replace not in ("normalised", "reset") or start not in ("orthogonal", "uniform"):
            raise InputError(
                f"replace is 'normalised' or 'reset' and start 'orthogonal' or 'uniform'; got {replace!r}, "
                f"{start!r}"
            )
        if temperature <= 0 or (merge_to is not None and merge_to < 1):
            raise InputError(
                f"temperature must be above 0 and merge_to at least 1; got {temperature}, {merge_to}"
            )
        self.backbone = backbone.requires_grad_(False)
        self.classes = [list(own) for own in classes]
        self.drop_and_replace, self.replace, self.unit = drop_and_replace, replace, unit
        self.temperature, self.merge_to = temperature, merge_to
        tasks, width, heads = len(classes), backbone.channels, backbone.heads
        self.selectors = nn.Parameter(torch.empty(tasks, selectors, width))
        self.prompts = nn.ParameterList(
            nn.Parameter(torch.empty(2, tasks, prompts, heads, width // heads)) for _ in range(prompt_blocks)
        )
        for values in (self.selectors, *self.prompts):
            if values.numel() == 0:
                continue
            nn.init.orthogonal_(values) if start == "orthogonal" else nn.init.uniform_(values, -1, 1)
        self.head = nn.Linear(width, count)
        self.lane_of: Tensor
        owner = torch.empty(count, dtype=torch.long)
        for task, own in enumerate(self.classes):
            owner[own] = task
        self.register_buffer("lane_of", owner, persistent=False)

    def next_task(self, task: int) -> None:
        """Start the lane of `task` from that of the task before."""
        with torch.no_grad():
            self.selectors[task] = self.selectors[task - 1]
            for prompts in self.prompts:
                prompts[:, task] = prompts[:, task - 1]

    def _attend(self, block: Block, number: int, y: Tensor, lanes: list[int], queries: int | None) -> Tensor:
        """Frozen attention over lane tokens (lanes, batch, tokens, channels), with the block's prompts."""
        query, key, value = block.attn.project(y)
        if number < len(self.prompts) and self.prompts[number].shape[2]:
            own = self.prompts[number][:, lanes].transpose(2, 3)[:, :, None]  # 2, lanes, 1, heads, K, d
            own_key, own_value = own.expand(-1, -1, y.shape[1], -1, -1, -1)
            key, value = torch.cat([own_key, key], dim=-2), torch.cat([own_value, value], dim=-2)
        return block.attn.gather(query[..., :queries, :], key, value)

    def lane_tokens(self, image: Tensor, lanes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Run some lanes.

        Args:
            image: images as the backbone takes them.
            lanes: tasks whose lanes are run.

        Returns:
            the lanes' tokens after each block, each (lanes, batch, 1 + selectors, channels), before the
            final norm, and the frozen image tokens after it (batch, 1 + patches, channels).
        """
        lanes, history = list(lanes), []
        with torch.no_grad():
            images = list(self.backbone.stream(image))
        first = self.backbone.cls_token.expand(len(lanes), len(image), -1, -1)
        start = self.selectors[lanes][:, None].expand(-1, len(image), -1, -1)
        token = first if self.merge_to is not None else torch.cat([first, start], dim=2)
        for number, (block, x) in enumerate(zip(self.backbone.blocks, images[:-1], strict=True)):
            assert isinstance(block, Block)
            with torch.no_grad():
                seen = block.norm1(x)
            mine = block.norm1(token)
            if self.merge_to is not None:
                few = merge_tokens(seen, self.merge_to).expand(len(lanes), -1, -1, -1)
                out = self._attend(block, number, torch.cat([mine, few], dim=2), lanes, 1)
            elif not self.drop_and_replace and number:
                out = self._attend(block, number, mine, lanes, None)
            else:
                y = torch.cat([mine[:, :, :1], summarise(mine[:, :, 1:], seen)], dim=2)
                kept = 1 if self.drop_and_replace else None
                out = self._attend(block, number, y, lanes, kept)
                if self.drop_and_replace:
                    out = torch.cat([out, mine[:, :, 1:]], dim=2)
            token = token + out
            token = token + block.mlp(block.norm2(token))
            if self.drop_and_replace and self.replace == "reset" and self.merge_to is None:
                token = torch.cat([token[:, :, :1], start], dim=2)
            history.append(token)
        return history, self.backbone.norm(images[-1])

    @torch.no_grad()
    def cache(self, lanes: Sequence[int]) -> list[Tensor]:
        """Normalised selectors at each block, (lanes, selectors, channels): no image changes them.

        Raises:
            InputError: without `drop_and_replace`, where they depend on the image.
        """
        if not self.drop_and_replace or self.merge_to is not None:
            raise InputError("selectors can be cached only with drop_and_replace and without merge_to")
        token, found = self.selectors[list(lanes)], []
        for block in self.backbone.blocks:
            assert isinstance(block, Block)
            mine = block.norm1(token)
            found.append(mine)
            if self.replace == "normalised":
                token = token + mine
                token = token + block.mlp(block.norm2(token))
        return found

    @torch.no_grad()
    def fast_features(self, image: Tensor, lanes: Sequence[int], cache: Sequence[Tensor]) -> Tensor:
        """What `features` returns, from cached selectors: only the class token walks the lane."""
        lanes = list(lanes)
        token = self.backbone.cls_token.expand(len(lanes), len(image), -1, -1)
        for number, x in enumerate(self.backbone.stream(image)):
            if number == self.backbone.depth:
                break
            block = self.backbone.blocks[number]
            assert isinstance(block, Block)
            u = summarise(cache[number][:, None], block.norm1(x))
            y = torch.cat([block.norm1(token), u], dim=2)
            token = token + self._attend(block, number, y, lanes, 1)
            token = token + block.mlp(block.norm2(token))
        return self._read(token)

    def _read(self, token: Tensor) -> Tensor:
        feature: Tensor = self.backbone.norm(token[:, :, 0]).transpose(0, 1)
        return normalize(feature, dim=-1) if self.unit else feature

    def features(self, image: Tensor, lanes: Sequence[int]) -> Tensor:
        """Class token of each lane at the end, (batch, lanes, channels)."""
        history, _ = self.lane_tokens(image, lanes)
        return self._read(history[-1])

    def task_logits(self, image: Tensor, task: int) -> Tensor:
        """Logits of all classes from one lane, as training sees them, (batch, classes)."""
        logits: Tensor = self.head(self.features(image, [task])[:, 0]) / self.temperature
        return logits

    def read_out(self, features: Tensor) -> Tensor:
        """Each class from its own lane, (batch, classes); classes of lanes that are not there are 0.

        Args:
            features: (batch, lanes, channels) of lanes 0, 1, ...
        """
        lanes = features.shape[1]
        every = self.head(features) / self.temperature  # batch, lanes, classes
        place = self.lane_of.clamp(max=lanes - 1).expand(len(features), 1, -1)
        logits: Tensor = every.gather(1, place)[:, 0] * (self.lane_of < lanes)
        return logits

    def forward(self, image: Tensor, tasks: int | None = None) -> Tensor:
        """Logits (batch, classes) from the first `tasks` lanes run in parallel; None runs all."""
        lanes = range(len(self.classes) if tasks is None else tasks)
        return self.read_out(self.features(image, lanes))


def summarise(selectors: Tensor, image: Tensor) -> Tensor:
    """Weigh image tokens by each selector: softmax over tokens of s x / sqrt(channels), times the tokens.

    Args:
        selectors: normalised selectors (lanes, batch or 1, S, channels).
        image: normalised image tokens (batch, tokens, channels).

    Returns:
        (lanes, batch, S, channels).
    """
    weight = (selectors @ image.transpose(1, 2) * image.shape[-1] ** -0.5).softmax(-1)
    summaries: Tensor = weight @ image
    return summaries


def masked_loss(logits: Tensor, target: Tensor, classes: Sequence[int]) -> Tensor:
    """Binary cross-entropy over all columns, with logits and targets outside the task set to 0.

    The other columns add log 2 each and no gradient.

    Args:
        logits: (batch, classes).
        target: (batch, classes) of 0 and 1.
        classes: columns of the task.
    """
    mask = torch.zeros_like(logits)
    mask[:, list(classes)] = 1
    return binary_cross_entropy_with_logits(logits * mask, target * mask)


class KeySelection(nn.Module):
    """The read-out that MULTI-LANE replaces: one lane is chosen by the likeness of its key to the image.

    Args:
        lanes: the lanes to choose from; they are not part of this module's parameters.
    """

    def __init__(self, lanes: MultiLane) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(len(lanes.classes), lanes.backbone.channels))
        nn.init.orthogonal_(self.keys)

    def loss(self, frozen: Tensor, task: int) -> Tensor:
        """Minus the mean cosine between a task's key and its images' frozen features (batch, channels)."""
        return -cosine_similarity(frozen, self.keys[task], dim=-1).mean()

    def choose(self, frozen: Tensor, tasks: int) -> Tensor:
        """The lane among the first `tasks` whose key is nearest, (batch,)."""
        return cosine_similarity(frozen[:, None], self.keys[None, :tasks], dim=-1).argmax(1)
