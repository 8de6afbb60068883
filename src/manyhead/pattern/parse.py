"""Patterns from text, as a command line gives them: `Window((7, 7)) & Causal((True, False))`."""

import ast
from typing import Any

from manyhead.errors import InputError
from manyhead.pattern.base import Pattern
from manyhead.pattern.shapes import Blocks, Causal, Everything, GridPartition, Halo, Prefix, Shifted
from manyhead.pattern.window import Window

NAMES: dict[str, type[Pattern]] = {
    kind.__name__: kind for kind in (Everything, Causal, Window, Blocks, GridPartition, Halo, Shifted, Prefix)
}


def parse_pattern(text: str) -> Pattern:
    """Read a pattern: constructors with literal arguments, joined by `&` and `|`.

    Raises:
        InputError: if the text is anything else; nothing in it is executed.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _wrong(text) from None
    return _build(tree, text)


def _wrong(text: str) -> InputError:
    return InputError(
        f"a pattern is made of {', '.join(NAMES)}, & and |, such as 'Window(7) & Causal()'; got {text!r}"
    )


def _build(node: ast.AST, text: str) -> Pattern:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _build(node.left, text), _build(node.right, text)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.Name) and node.id in NAMES:
        return _call(NAMES[node.id], [], {}, text)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in NAMES:
        raise _wrong(text)
    try:
        arguments = [ast.literal_eval(argument) for argument in node.args]
        named = {word.arg or "": ast.literal_eval(word.value) for word in node.keywords}
    except ValueError:
        raise _wrong(text) from None
    return _call(NAMES[node.func.id], arguments, named, text)


def _call(kind: type[Pattern], arguments: list[Any], named: dict[str, Any], text: str) -> Pattern:
    try:
        return kind(*arguments, **named)
    except TypeError as error:
        raise InputError(f"{kind.__name__} in {text!r}: {error}") from None
