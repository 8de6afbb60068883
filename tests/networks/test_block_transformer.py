"""Block Transformer: who sees whom, caches equal the parallel pass, losses and uptraining."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from manyhead.errors import InputError
from manyhead.networks.block_transformer import BlockTransformer
from manyhead.networks.embedder import EncoderEmbedder, ProjectionEmbedder
from manyhead.networks.transformer import Transformer


def model(seed=0, **options):
    torch.manual_seed(seed)
    options = {"block_length": 4, **options}
    found = BlockTransformer.build(30, 16, (2, 2), 2, **options).eval()
    for parameter in found.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return found


VARIANTS = {
    "prefix": {},
    "prefix 1, wide tokens": {"prefix": 1, "token_channels": 24},
    "summation": {"interface": "summation"},
    "cross": {"interface": "cross_attention"},
    "projection": {"embedder": ProjectionEmbedder(30, 4, 16, 6)},
    "encoder": {"embedder": EncoderEmbedder(30, 4, 16, 1, 2, 2)},
}


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_cached_writing_equals_the_parallel_pass(name):
    net = model(**VARIANTS[name])
    prompt = torch.randint(1, 30, (3, 10))  # two tokens short of three blocks
    new, logits = net.generate(prompt, 11)
    assert new.shape == (3, 11)
    blocks, mask = net.blocked(prompt)
    assert mask.sum() == 30
    ids = torch.cat([blocks.flatten(1), new, new[:, :1]], 1).unflatten(1, (-1, 4))
    parallel = net(ids)[:, 2:].flatten(1, 2)[:, :11]
    torch.testing.assert_close(logits, parallel, rtol=1e-4, atol=1e-5)
    assert torch.equal(parallel.argmax(-1), new)
    assert net.tokens.capacity <= 2 + 4 - 1


def test_sees_earlier_blocks_and_earlier_tokens_of_its_own_only():
    net = model()
    ids = torch.randint(30, (1, 5, 4))
    logits = net(ids)
    for block in range(5):
        for token in range(4):
            changed = ids.clone()
            changed[0, block, token] = (ids[0, block, token] + 1) % 30
            same = (net(changed) == logits).all(-1)[0]  # (blocks - 1, tokens), of blocks 1..4
            expected = torch.ones(4, 4, dtype=torch.bool)
            expected[block:] = False  # later blocks see it through the block decoder
            if block > 0:
                expected[block - 1, token + 1 :] = False
            assert torch.equal(same, expected), (block, token)


@torch.no_grad()
def test_without_expansion_blocks_know_nothing_of_each_other():
    net = model()
    net.tokens.expansion.weight.zero_()
    ids = torch.randint(30, (1, 4, 4))
    ids[0, 2] = ids[0, 1]
    logits = net(ids)
    torch.testing.assert_close(logits[0, 0], logits[0, 1])


def test_loss_is_the_mean_over_real_tokens_and_padding_blocks_change_nothing():
    net = model()
    ids = torch.randint(30, (2, 4, 4))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 3, 2:] = False
    logits = net(ids, mask)
    by_hand = cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
    torch.testing.assert_close(net.loss(ids, mask), by_hand)
    wide = torch.cat([ids, torch.zeros(2, 2, 4, dtype=torch.long)], 1)
    wide_mask = torch.cat([mask, torch.zeros(2, 2, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(net.loss(wide, wide_mask), by_hand)
    left = torch.cat([torch.zeros(2, 1, 4, dtype=torch.long), ids], 1)
    left_mask = torch.cat([torch.zeros(2, 1, 4, dtype=torch.bool), mask], 1)
    found = net(left, left_mask)[:, 1:]
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)  # rotary: positions are relative
    for options in ({"block_loss": "mse"}, {"block_loss": "contrastive"}, {"autoencoding": True}):
        assert net.loss(ids, mask, **options) > by_hand
    with pytest.raises(InputError, match="contrastive"):
        net.loss(ids, block_loss="cosine")


@torch.no_grad()
def test_one_token_blocks_are_a_token_level_model():
    net = model(block_length=1, prefix=1)
    ids = torch.randint(30, (2, 9, 1))
    _, context = net.contexts(ids)
    alone = net.tokens(context[:, :-1].flatten(0, 1), ids[:, 1:].flatten(0, 1))
    torch.testing.assert_close(net(ids), alone.reshape(2, 8, 1, -1))
    assert net.tokens.capacity == 1


@torch.no_grad()
def test_stopped_samples_are_frozen():
    net = model()
    prompt = torch.randint(1, 30, (2, 8))
    free, _ = net.generate(prompt, 12)
    stop = int(free[0, 5])
    stopped, _ = net.generate(prompt, 12, stop=stop)
    for row, original in zip(stopped.tolist(), free.tolist(), strict=True):
        end = original.index(stop) + 1 if stop in original else 12
        assert row[:end] == original[: min(end, len(row))]
        assert all(token == net.pad for token in row[end:])


@torch.no_grad()
def test_uptraining_starts_from_halves_means_and_copies():
    torch.manual_seed(0)
    vanilla = Transformer(30, 16, 5, 2, arrangement="parallel", tie=False).eval()
    net = BlockTransformer.from_vanilla(vanilla, 4, 3)
    assert (len(net.blocks.layers), len(net.tokens.stack.layers)) == (3, 2)
    ids = torch.randint(30, (2, 3, 4))
    mean = vanilla.embedding.tokens(ids).mean(2)
    torch.testing.assert_close(net.embedder(ids), mean)
    context = torch.randn(5, 16)
    torch.testing.assert_close(net.tokens._begin(context)[0], context[:, None].expand(-1, 3, -1))
    assert torch.isfinite(net.loss(ids))


def test_cache_is_a_block_lengths_part_of_a_vanilla_stacks():
    net, vanilla = model(), Transformer(30, 16, 2, 2)
    capacity = 512
    count = lambda states: sum(state.nbytes for state in states)  # noqa: E731
    blocks = count(net.prefill(torch.zeros(1, 1, 4, dtype=torch.long), capacity).layers)
    assert blocks * 4 == count(vanilla.initial_state(1, capacity).layers)


def test_bad_arguments():
    for wrong in (
        lambda: BlockTransformer.build(30, 16, heads=2, block_length=3),
        lambda: model(interface="magic"),
        lambda: model().generate(torch.zeros(1, 0).long(), 3),
    ):
        with pytest.raises(InputError):
            wrong()
