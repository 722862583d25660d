"""Imports point only downwards, and only the door to C goes through it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src"
CORE = "kerneltrace_core"
EXTENSIONS = {f"{CORE}._native.{name}" for name in ("_events", "_libbpf", "_step")}
INTEGRATIONS = ("kerneltrace_asgi", "kerneltrace_django")

# From the bottom up; what is in one row may import its neighbours, but not in a circle.
LAYERS = (
    ("errors",),
    ("_native",),
    ("kernel", "btf"),
    ("ring", "bpf", "codegen"),
    ("events", "symbols"),
    ("maps",),
    ("session",),
    ("requests",),
    ("exporters",),
    (CORE,),  # the public root, its __init__ alone
    INTEGRATIONS,
    ("doctor", "testing", "include", "pytest_plugin", "cli", "__main__"),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# What a package is made for it may import; all else only inside functions, where it is used.
HOSTS = {
    "_native": {"cffi"},
    "kerneltrace_django": {"django", "asgiref"},
    "kerneltrace_django.panels": {"debug_toolbar"},  # imported by the toolbar alone
    "pytest_plugin": {"pytest"},
}


class Import(NamedTuple):
    """One imported module, absolute; `eager` when it is imported together with the importer."""

    target: str
    line: int
    eager: bool


def is_type_checking(node: ast.If) -> bool:
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def imports_of(tree: ast.AST, package: str, *, eager: bool = True) -> Iterator[Import]:
    """Yield the imports in a module of `package`; those for type checkers alone are not eager."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, eager)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                # `from package import module` and `from module import name` look the same.
                submodule = f"{base}.{alias.name}"
                target = submodule if is_module(submodule) else base
                yield Import(target, node.lineno, eager)
        elif isinstance(node, ast.If) and is_type_checking(node):
            for child in node.body:
                yield from imports_of(ast.Module([child], []), package, eager=False)
            yield from imports_of(ast.Module(node.orelse, []), package, eager=eager)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, package, eager=eager and not inside)


def is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir() or name in EXTENSIONS


def component(module: str) -> str:
    """Return the name by which LAYERS knows a module of ours."""
    first, _, rest = module.partition(".")
    if first != CORE:
        return first
    return rest.partition(".")[0] or CORE


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in (CORE, *INTEGRATIONS)


class Module(NamedTuple):
    name: str
    component: str
    imports: tuple[Import, ...]


def read_module(path: Path) -> Module:
    parts = list(path.relative_to(SOURCE).with_suffix("").parts)
    package = ".".join(parts[:-1])
    name = package if parts[-1] == "__init__" else ".".join(parts)
    tree = ast.parse(path.read_text(), str(path))
    return Module(name, component(name), tuple(imports_of(tree, package)))


MODULES = [read_module(path) for path in sorted(SOURCE.rglob("*.py"))]
OURS = [
    (module, imported)
    for module in MODULES
    for imported in module.imports
    if is_ours(imported.target)
]


def test_every_module_has_a_layer() -> None:
    strays = sorted({module.name for module in MODULES if module.component not in RANK})

    assert strays == [], "give it a row in LAYERS"


def test_imports_point_downwards() -> None:
    upward = [
        f"{module.name}:{imported.line} imports {imported.target}"
        for module, imported in OURS
        if RANK[component(imported.target)] > RANK[module.component]
    ]

    assert upward == []


def test_neighbours_do_not_import_each_other_in_a_circle() -> None:
    edges = {
        (module.component, component(imported.target))
        for module, imported in OURS
        if module.component != component(imported.target)
    }

    assert sorted((a, b) for a, b in edges if a < b and (b, a) in edges) == []


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_one_module_at_most_imports_each_extension(extension: str) -> None:
    importers = {module.name for module, imported in OURS if imported.target == extension}

    # _step and _events have twins in Python: who chooses between the two imports them.
    allowed = {"_libbpf": f"{CORE}._native.lib", "_step": f"{CORE}.requests."}.get(
        extension.rpartition(".")[2], f"{CORE}.events."
    )
    assert len(importers) <= 1
    assert all(name.startswith(allowed) for name in importers)


def test_integrations_see_only_the_core_root_requests_and_exporters() -> None:
    others = [
        f"{module.name}:{imported.line} imports {imported.target}"
        for module, imported in OURS
        if module.component in INTEGRATIONS
        and component(imported.target) not in (module.component, CORE, "requests", "exporters")
    ]

    assert others == []


def test_nothing_optional_is_imported_before_it_is_used() -> None:
    eager = [
        f"{module.name}:{imported.line} imports {imported.target}"
        for module in MODULES
        for imported in module.imports
        if imported.eager
        and not is_ours(imported.target)
        and imported.target.partition(".")[0] not in sys.stdlib_module_names
        and imported.target.partition(".")[0] not in HOSTS.get(module.component, set())
        and imported.target.partition(".")[0] not in HOSTS.get(module.name, set())
    ]

    assert eager == []
