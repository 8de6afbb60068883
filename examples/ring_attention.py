"""Exact attention of one long sequence over several processes.

    torchrun --nproc-per-node 4 examples/ring_attention.py --tokens 4096

Every process makes its own shard, attends over the ring, and prints the bytes that it holds and sent. Up to
8,192 tokens the result and the gradients are compared with one process.
"""

import argparse
import resource
import time

import torch
import torch.distributed as dist

from manyhead.attention import attend
from manyhead.kernels.ring import ring_attend
from manyhead.kernels.rings import ProcessRing
from manyhead.kernels.shards import schedule, shard
from manyhead.pattern.parse import parse_pattern


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--pattern", default="Causal()")
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--repeat", type=int, default=1, help="how often to attend")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for a neighbour")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    ring = ProcessRing(timeout=options.timeout)
    pattern = parse_pattern(options.pattern)

    generator = torch.Generator().manual_seed(0)  # the same numbers everywhere, of which each keeps its part
    shape = (1, options.tokens, options.heads, options.dim)
    whole = [torch.randn(shape, generator=generator) for _ in range(4)]
    q, k, v, upstream = (shard(x, ring.rank, ring.size, options.layout) for x in whole)
    if options.tokens > 8192:
        whole.clear()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for number in range(options.repeat):
        if number == 1:
            print(f"process {ring.rank} attends again", flush=True)
        out = ring_attend(*inputs, pattern, options.tokens, ring=ring, layout=options.layout)
        gradients = torch.autograd.grad(out, inputs, upstream)
    seconds = (time.perf_counter() - start) / options.repeat
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    held = sum(x.numel() * x.element_size() for x in (k, v))
    work = schedule(pattern, options.tokens, ring.size, options.layout)
    line = (
        f"process {ring.rank}: keys and values {held:,} bytes (1/{ring.size}), sent {ring.sent:,} bytes, "
        f"{seconds:.2f} s, memory grew by {grown / 1024:.0f} MiB, work over mean "
        f"{work.work[ring.rank] / work.work.mean():.3f}"
    )
    if whole:
        full = [x.requires_grad_() for x in whole[:3]]
        expected = attend(*full, pattern)
        wanted = [expected, *torch.autograd.grad(expected, full, whole[3])]
        mine = [shard(x, ring.rank, ring.size, options.layout) for x in wanted]
        pairs = zip([out.detach(), *gradients], mine, strict=True)
        error = max(float((a - b.detach()).abs().max()) for a, b in pairs)
        line += f", largest error {error:.1e}"
    print(line, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
