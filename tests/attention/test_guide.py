"""The guide's Python blocks print what the guide says they print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "attention.md"
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_guide_has_its_blocks() -> None:
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(("code", "printed"), BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_a_block_prints_what_stands_below_it(code: str, printed: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(GUIDE), "exec"), {})
    assert out.getvalue() == printed
