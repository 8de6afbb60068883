"""gna: generalised neighbourhood attention, its module, the simulator's tile counts and merging."""

from typing import Any

import torch

from manyhead.attention import attend, merge
from manyhead.pattern.simulator import simulate
from tests.parity.compare import Golden
from tests.parity.faster_na import Pairs, fused, module, window


def tiles(case: dict[str, Any], options: dict[str, Any], name: str) -> Pairs:
    """Tile counts with padding as the official block mask, speed-ups without."""
    pattern, shape = window(options), tuple(options["shape"])
    sizes = tuple(options["q_tile"]), tuple(options["kv_tile"])
    padded = simulate(shape, pattern, *sizes, count_padding=True)
    static, dynamic = simulate(shape, pattern, *sizes), simulate(shape, pattern, *sizes, tiling="dynamic")
    numbers = {
        "visited_total_padded": padded.visited,
        "full_total_padded": padded.full,
        "visited_total": static.visited,
        "dense_tiles": static.dense,
    }
    speeds = {
        "speedup_static": static.speedup_bound,
        "speedup_dynamic": dynamic.speedup_bound,
        "speedup_flop": static.flop_speedup,
    }
    return (
        {
            f"{name}/kv_tiles_visited": (padded.visited_per_tile, case["kv_tiles_visited"]),
            f"{name}/kv_tiles_full": (padded.full_per_tile, case["kv_tiles_full"]),
        }
        | {f"{name}/{what}": (ours, options[what]) for what, ours in numbers.items() if what in options}
        | {f"{name}/{what}": (ours, options[what]) for what, ours in speeds.items() if what in options}
    )


def run(arrays: Golden) -> Pairs:
    pairs: Pairs = {}
    for name, options in arrays["config"].items():
        case = arrays.group(name + "/")
        if not isinstance(options, dict):
            continue
        if name[0] == "c":
            pairs |= fused(case, options, name, "windows") | fused(case, options, name, "reference")
        elif name[0] == "s":
            pairs |= tiles(case, options, name)
        elif name == "addkv":
            q, k, v, ak, av = (torch.tensor(case[x]) for x in ("q", "k", "v", "ak", "av"))
            for kernel in ("windows", "reference"):
                out = attend(
                    q, k, v, window(options), kernel=kernel, additional_keys=ak, additional_values=av
                )
                pairs[f"addkv/{kernel}/out"] = (out, case["out"])
        elif name[0] == "m" and "embed_dim" in options:
            pairs |= module(case, options, name)
    parts = arrays.group("merge/")
    count = sum(name.startswith("o") and name[1:].isdigit() for name in parts)
    out, lse = merge(
        [torch.tensor(parts[f"o{i}"]) for i in range(count)],
        [torch.tensor(parts[f"lse{i}"]) for i in range(count)],
    )
    return pairs | {"merge/out": (out, parts["out"]), "merge/lse": (lse, parts["lse"])}
