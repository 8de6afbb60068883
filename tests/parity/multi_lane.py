"""MULTI-LANE against the authors' vision transformer (tdemin16/multi-lane)."""

from typing import Any

import torch

from manyhead.networks.multi_lane import MultiLane, masked_loss
from manyhead.networks.vision_transformer import VisionTransformer

Pair = tuple[Any, Any]


def build(config: Any, weights: Any) -> MultiLane:
    """The network of a golden file, with its weights."""
    backbone = VisionTransformer(
        image=config["img_size"],
        patch=config["patch_size"],
        inputs=config["in_chans"],
        channels=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        ratio=config["mlp_ratio"],
    )
    model = MultiLane(
        backbone,
        config["class_mask"],
        config["num_selectors"],
        config["num_prompts"],
        config["num_prompt_layers"],
        drop_and_replace=not config["disable_dandr"],
        unit=config["normalize"] == "pre-head",
        temperature=config.get("temperature", 1.0),
    )
    state = {}
    for name, values in weights.items():
        tensor = torch.from_numpy(values)
        if name.endswith("attn.prompts"):
            state[f"prompts.{name.split('.')[1]}"] = tensor
        elif name.startswith(("head.", "selectors")):
            state[name] = tensor
        else:
            state[f"backbone.{name}"] = tensor
    model.load_state_dict(state)
    return model


def run(arrays: Any) -> dict[str, Pair]:
    config, task = arrays["config"], arrays["config"]["t"]
    model = build(config, arrays.group("w/"))
    x = torch.from_numpy(arrays["x"])
    history, image = model.lane_tokens(x, range(task + 1))
    features = model.features(x, range(task + 1))
    pairs: dict[str, Pair] = {
        f"eval/lane_tokens_after_block{block}": (tokens, arrays[f"eval/lane_tokens_after_block{block}"])
        for block, tokens in enumerate(history)
    }
    pairs |= {
        "eval/image_tokens_final": (image, arrays["eval/image_tokens_final"]),
        "eval/lane_tokens_final": (model.backbone.norm(history[-1]), arrays["eval/lane_tokens_final"]),
        "eval/frozen_cls": (image[:, 0], arrays["eval/frozen_cls"]),
        "eval/lane_cls_normalized": (features, arrays["eval/lane_cls_normalized"]),
        "eval/logits": (model(x, task + 1), arrays["eval/logits"]),
    }
    logits = model.task_logits(x, task)
    loss = masked_loss(logits, torch.from_numpy(arrays["train/target_full"]), config["class_mask"][task])
    loss.backward()  # type: ignore[no-untyped-call]
    pairs["train/logits_unmasked"] = (logits, arrays["train/logits_unmasked"])
    pairs["train/loss"] = (loss, arrays["train/loss"])
    ours = {
        "selectors": model.selectors,
        "head.weight": model.head.weight,
        "head.bias": model.head.bias,
    } | {f"blocks.{block}.attn.prompts": prompts for block, prompts in enumerate(model.prompts)}
    for name, official in arrays.group("grad/").items():
        pairs[f"grad/{name}"] = (ours[name].grad, official)
    return pairs
