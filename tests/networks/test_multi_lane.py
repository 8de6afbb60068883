"""MULTI-LANE: lanes do not touch each other, old classes do not move, cached selectors change nothing."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.networks.multi_lane import KeySelection, MultiLane, masked_loss, merge_tokens, summarise
from manyhead.networks.vision_transformer import VisionTransformer

CLASSES = [[0, 3], [1, 4], [2]]


def make(**options: object) -> tuple[MultiLane, Tensor]:
    torch.manual_seed(0)
    backbone = VisionTransformer(image=16, patch=4, inputs=1, channels=24, depth=3, heads=3, ratio=2)
    for parameter in backbone.parameters():  # norms and biases that matter
        torch.nn.init.normal_(parameter, std=0.3)
    given = {"selectors": 4, "prompts": 3, "prompt_blocks": 2} | options
    return MultiLane(backbone, CLASSES, **given), torch.randn(5, 1, 16, 16)  # type: ignore[arg-type]


def test_a_base_transformer_has_84480_trained_numbers_a_task() -> None:
    with torch.device("meta"):
        model = MultiLane(VisionTransformer(), [[0]], selectors=10, prompts=10, prompt_blocks=5)
        head = sum(p.numel() for p in model.head.parameters())
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) - head == 84_480


def test_lanes_together_equal_each_lane_alone() -> None:
    model, image = make()
    together = model.features(image, [0, 1, 2])
    for lane in range(3):
        torch.testing.assert_close(together[:, lane], model.features(image, [lane])[:, 0])


def test_old_classes_do_not_move_by_one_bit_while_a_later_task_is_trained() -> None:
    model, image = make()
    before = model(image, 1)
    model.next_task(1)
    assert torch.equal(model.selectors[1], model.selectors[0])
    assert torch.equal(model.prompts[1][:, 1], model.prompts[1][:, 0])
    lane = model.selectors[1].clone()
    two_lanes = model(image, 2)  # bits are compared between products of the same shape
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    target = torch.randint(0, 2, (5, 5)).float()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = masked_loss(model.task_logits(image, 1), target, CLASSES[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(model.selectors[1], lane)
    assert torch.equal(model(image, 1), before)
    assert torch.equal(model(image, 2)[:, CLASSES[0]], two_lanes[:, CLASSES[0]])
    torch.testing.assert_close(model(image, 2)[:, CLASSES[0]], before[:, CLASSES[0]])
    assert not model(image, 2)[:, CLASSES[2]].any()


def test_gradients_reach_the_lane_and_its_rows_of_the_head_alone() -> None:
    model, image = make()
    masked_loss(model.task_logits(image, 1), torch.ones(5, 5), CLASSES[1]).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    for values, axis in ((model.selectors, 0), (model.prompts[0], 1), (model.prompts[1], 1)):
        assert values.grad is not None
        moved = values.grad.transpose(0, axis).flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False]
    assert model.head.weight.grad is not None
    rows = model.head.weight.grad.abs().sum(1) > 0
    assert rows.nonzero().flatten().tolist() == CLASSES[1]


@pytest.mark.parametrize("replace", ["normalised", "reset"])
@pytest.mark.parametrize("prompts", [0, 3])
def test_cached_selectors_change_nothing(replace: str, prompts: int) -> None:
    model, image = make(replace=replace, prompts=prompts)
    history, _ = model.lane_tokens(image, [0, 2])
    for tokens in history:  # selectors do not see the image
        torch.testing.assert_close(tokens[:, :1, 1:].expand(-1, 5, -1, -1), tokens[:, :, 1:])
    fast = model.fast_features(image, [0, 2], model.cache([0, 2]))
    torch.testing.assert_close(fast, model.features(image, [0, 2]), rtol=1e-5, atol=1e-5)


def test_the_order_of_selectors_does_not_matter() -> None:
    model, image = make()
    before = model.features(image, [0])
    with torch.no_grad():
        model.selectors.copy_(model.selectors[:, [2, 0, 3, 1]])
    torch.testing.assert_close(model.features(image, [0]), before)


def test_a_selector_that_attends_to_one_token_returns_it() -> None:
    image = torch.nn.functional.one_hot(torch.arange(6), 6).float()[None] * 10
    picked = summarise(image[0, [4, 1]][None, None] * 50, image)
    torch.testing.assert_close(picked[0, 0], image[0, [4, 1]])


def test_without_the_image_class_token_the_lane_attention_is_that_of_the_transformer() -> None:
    model, image = make(prompts=0)
    block = model.backbone.blocks[0]
    x = model.backbone.embed(image)
    y = block.norm1(x)  # its class token has its position, and the image tokens are all there
    lane = model._attend(block, 0, y[None], [0], 1)
    torch.testing.assert_close(lane[0, :, 0], block.attn(block.norm1(x))[:, 0])


@pytest.mark.parametrize("options", [{"drop_and_replace": False}, {"merge_to": 5}, {"unit": False}])
def test_variants_run_and_read_every_class_from_its_own_lane(options: dict[str, object]) -> None:
    model, image = make(**options)
    logits = model(image)
    for task, own in enumerate(CLASSES):
        torch.testing.assert_close(logits[:, own], model.task_logits(image, task)[:, own])
    length = model.features(image, [0]).norm(dim=-1)
    assert torch.allclose(length, torch.ones(5, 1)) == (options != {"unit": False})
    if options != {"unit": False}:
        with pytest.raises(InputError, match="can be cached only"):
            model.cache([0])


@pytest.mark.parametrize(("tokens", "at_most"), [(17, 5), (16, 15), (9, 1), (3, 8)])
def test_merged_tokens_keep_their_weighted_mean(tokens: int, at_most: int) -> None:
    x = torch.randn(2, tokens, 6, dtype=torch.float64)
    merged = merge_tokens(x, at_most)
    assert merged.shape == (2, min(tokens, at_most), 6)
    if at_most == 1:
        torch.testing.assert_close(merged[:, 0], x.mean(1))


def test_equal_tokens_are_merged_first() -> None:
    x = torch.randn(1, 8, 5)
    x[:, 5] = x[:, 2]
    merged = merge_tokens(x, 7)
    assert sorted(map(float, merged[0, :, 0])) == pytest.approx(
        sorted(map(float, x[0, [0, 1, 2, 3, 4, 6, 7], 0]))
    )


def test_the_masked_loss_adds_log_two_for_every_other_column() -> None:
    logits, target = torch.randn(4, 5), torch.randint(0, 2, (4, 5)).float()
    own = binary_cross_entropy_with_logits(logits[:, [1, 4]], target[:, [1, 4]])
    expected = (2 * own + 3 * torch.log(torch.tensor(2.0))) / 5
    torch.testing.assert_close(masked_loss(logits, target, [1, 4]), expected)


def test_keys_learn_to_tell_images_of_tasks_apart() -> None:
    model, _ = make()
    keys = KeySelection(model)
    frozen = torch.randn(3, 24) @ torch.randn(24, 24)
    optimizer = torch.optim.Adam(keys.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        sum(keys.loss(frozen[[task]], task) for task in range(3)).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert keys.choose(frozen, 3).tolist() == [0, 1, 2]
    assert int(keys.choose(frozen, 1).max()) == 0


def test_ten_cached_lanes_cost_less_than_one_more_pass_of_the_transformer() -> None:
    with torch.device("meta"):
        backbone = VisionTransformer(channels=192, depth=4, heads=3)
        model = MultiLane(backbone, [[t] for t in range(10)], selectors=10, prompts=10, prompt_blocks=4)
        image, cache = torch.empty(1, 3, 224, 224), model.cache(range(10))

        def flops(run: object) -> int:
            with FlopCounterMode(display=False) as counter:
                run()  # type: ignore[operator]
            return counter.get_total_flops()

        plain = flops(lambda: backbone(image))
        lanes = flops(lambda: model.fast_features(image, range(10), cache))
        full = flops(lambda: model.features(image, range(10)))
    assert plain < lanes < 2 * plain
    assert lanes < full


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selectors": 0}, "at least 1 selector"),
        ({"prompt_blocks": 9}, "in at most 3 blocks"),
        ({"replace": "keep"}, "replace is"),
        ({"temperature": 0}, "temperature must be above 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)
    with pytest.raises(InputError, match="classes must be 0 to 1"):
        MultiLane(VisionTransformer(8, 4, 1, 8, 1, 1), [[0], [2]])
    with pytest.raises(InputError, match="do not tile"):
        VisionTransformer(10, 4)
