"""The ring over real processes: equal to one process, and a killed neighbour is named, not waited for."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ring_attention.py"


def start(world: int, *arguments: str) -> list["subprocess.Popen[str]"]:
    """Start the example's processes as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(EXAMPLE), *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize(("world", "pattern"), [(2, "Window(65, causal=True) | Prefix(4)"), (4, "Causal()")])
def test_processes_equal_one_and_hold_their_share(world: int, pattern: str) -> None:
    members = start(world, "--tokens", "296", "--pattern", pattern, "--timeout", "120")
    for member in members:
        text = member.communicate(timeout=200)[0]
        assert member.returncode == 0, text
        error = re.search(r"largest error ([\d.e+-]+)", text)
        assert error, text
        assert float(error.group(1)) < 1e-5
        held = re.search(r"keys and values ([\d,]+) bytes", text)
        assert held
        assert int(held.group(1).replace(",", "")) == 2 * (296 // world) * 2 * 16 * 4


def test_a_killed_process_ends_the_others_with_a_message() -> None:
    members = start(4, "--tokens", "2048", "--repeat", "1000000", "--timeout", "20")
    assert members[1].stdout is not None
    assert "attends" in members[1].stdout.readline()  # the ring is closed and at work
    members[1].send_signal(signal.SIGKILL)
    members[1].communicate()
    for member in (members[0], members[2], members[3]):  # two neighbours, and one that is none
        text = member.communicate(timeout=100)[0]
        assert member.returncode not in (0, None)
        assert "LostPeer" in text
        assert "lost a neighbour" in text
