"""What a type checker is told of the middleware is what it takes."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

from kerneltrace_asgi import middleware
from kerneltrace_asgi.options import AsgiOptions


def test_the_signature_for_type_checkers_names_every_option_and_no_other() -> None:
    tree = ast.parse(Path(str(middleware.__file__)).read_text(encoding="utf-8"))
    signatures = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwonlyargs
    ]

    assert len(signatures) == 1
    told = [argument.arg for argument in signatures[0].args.kwonlyargs]
    assert sorted(told) == sorted(each.name for each in fields(AsgiOptions))
