"""Block Transformer against itsnamgyu/block-transformer (its positions in training, not its generate)."""

from typing import Any

import torch

from manyhead.networks.block_transformer import BlockTransformer, TokenDecoder, neox_stack
from manyhead.networks.embedder import LookupEmbedder


def stack_weights(w: dict[str, Any], heads: int, ours: str) -> dict[str, torch.Tensor]:
    """A GPT-NeoX stack: rows of query_key_value are (head, q k v, head_dim)."""
    found = {}
    names = {
        "input_layernorm": "norm_mixer",
        "post_attention_layernorm": "norm_feed",
        "attention.dense": "mixer.out_proj",
        "mlp.dense_h_to_4h": "feed_forward.wide",
        "mlp.dense_4h_to_h": "feed_forward.narrow",
    }
    for name, value in w.items():
        if name.startswith("final_layer_norm"):
            found[f"{ours}.norm{name.removeprefix('final_layer_norm')}"] = torch.tensor(value)
        elif name.startswith("layers."):
            _, level, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            tensor = torch.tensor(value)
            if part == "attention.query_key_value":
                each = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
                for letter, piece in zip("qkv", each, strict=True):
                    found[f"{ours}.layers.{level}.mixer.{letter}_proj.{kind}"] = piece.flatten(0, 1)
            else:
                found[f"{ours}.layers.{level}.{names[part]}.{kind}"] = tensor
    return found


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    block, token = config["block"], config["token"]
    rotary = config["rotary_pct"]
    model = BlockTransformer(
        LookupEmbedder(config["vocab"], config["block_length"], block["dim"]),
        neox_stack(block["dim"], block["layers"], block["heads"], rotary=rotary),
        TokenDecoder(
            config["vocab"],
            config["block_length"],
            block["dim"],
            token["dim"],
            token["layers"],
            token["heads"],
            prefix=config["prefix"],
            rotary=rotary,
        ),
        pad=config["pad_id"],
    )
    for module in model.modules():
        if hasattr(module, "rotary_base"):
            module.rotary_base = float(config["rotary_base"])
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config["ln_eps"]
    weights = stack_weights(arrays.group("w/block_decoder.gpt_neox."), block["heads"], "blocks")
    weights |= stack_weights(arrays.group("w/token_decoder.gpt_neox."), token["heads"], "tokens.stack")
    weights |= {
        ours: torch.tensor(arrays[f"w/{theirs}"])
        for ours, theirs in {
            "embedder.embeddings.weight": "embedder.embeddings.weight",
            "tokens.embeddings.weight": "token_decoder.gpt_neox.embed_in.weight",
            "tokens.output.weight": "token_decoder.embed_out.weight",
            "tokens.expansion.bias": "token_decoder.expansion_layer.bias",
        }.items()
    }
    expansion = arrays["w/token_decoder.expansion_layer.weight"]
    weights["tokens.expansion.weight"] = torch.tensor(expansion[..., 0])
    model.load_state_dict(weights)
    ids, mask = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["attention_mask"]).bool()
    embedded, context = model.contexts(ids, mask)
    logits = model(ids, mask) * mask[:, 1:, :, None]
    loss = model.loss(ids, mask)
    loss.backward()
    prompt = torch.tensor(arrays["gen_prompt"])
    written, _ = model.generate(prompt, arrays["gen_out"].shape[1] - prompt.shape[1])
    real = mask.any(-1)[..., None]
    return {
        "block_attention_mask": (mask.any(-1).long(), arrays["block_attention_mask"]),
        "input_embeds": (embedded, arrays["input_embeds"]),
        "block_hidden": (context * real, arrays["block_hidden"] * real.numpy()),
        "logits": (logits, arrays["logits"]),
        "loss": (loss, arrays["loss"]),
        "grad_embed": (model.embedder.embeddings.weight.grad, arrays["grad_embed"]),
        "grad_expansion": (model.tokens.expansion.weight.grad[..., None], arrays["grad_expansion"]),
        "gen_out": (torch.cat([prompt, written], 1), arrays["gen_out"]),
    }
