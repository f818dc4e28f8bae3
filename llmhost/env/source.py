"""Reads an installed package's source without importing it: names, classes, annotations."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_DEPTH = 20
"""Aliases followed before giving up: a cycle of imports must not loop."""


class Source:
    """The modules below ``root`` (a site-packages directory), parsed when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """The module of that dotted name, or None when it is not there or not Python."""
        if name not in self._modules:
            base = self.root.joinpath(*name.split("."))
            file = next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
            self._modules[name] = _parse(self, name, file) if file else None
        return self._modules[name]


def _parse(source: Source, name: str, file: Path) -> Module | None:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return Module(source, package, tree)


@dataclass(frozen=True)
class Found:
    """A definition and the module whose names it uses."""

    module: Module
    node: ast.AST


class Module:
    """One parsed module; ``package`` is what its relative imports start from."""

    def __init__(self, source: Source, package: str, tree: ast.Module) -> None:
        self.source = source
        self.package = package
        self.tree = tree

    @cached_property
    def names(self) -> dict[str, ast.AST]:
        """Top-level names and what defines them: a class, a function, an assigned value, or an import."""
        return dict(_definitions(self.tree.body))

    def find(self, name: str, depth: int = _DEPTH) -> Found | None:
        """The definition behind a name, through imports inside the source tree."""
        node = self.names.get(name)
        if isinstance(node, ast.ImportFrom):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            module = self.source.module(self._absolute(node))
            return module.find(original, depth - 1) if module and depth else None
        return Found(self, node) if node is not None else None

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parents = self.package.split(".")
        base = parents[: len(parents) - node.level + 1]
        return ".".join((*base, node.module) if node.module else base)

    def find_class(self, name: str) -> tuple[Module, ast.ClassDef] | None:
        """The class behind a name, and the module it stands in."""
        found = self.find(name)
        return (found.module, found.node) if found and isinstance(found.node, ast.ClassDef) else None


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node.value) for t in targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            # `if TYPE_CHECKING:` and friends; what stands outside them wins because it comes later.
            yield from _definitions([*node.body, *node.orelse])


def method(module: Module, owner: ast.ClassDef, name: str) -> tuple[Module, ast.FunctionDef] | None:
    """A method by name, looked up in the class and then in its bases."""
    for where, part in lineage(module, owner):
        for node in part.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return where, node
    return None


def lineage(module: Module, owner: ast.ClassDef) -> list[tuple[Module, ast.ClassDef]]:
    """The class and its bases inside the source tree, nearest first."""
    found = [(module, owner)]
    for base in owner.bases:
        parent = module.find_class(base.id) if isinstance(base, ast.Name) else None
        if parent and parent[1] is not owner:
            found += lineage(*parent)
    return found


def fields(module: Module, owner: ast.ClassDef) -> dict[str, Found]:
    """The annotated fields of a dataclass and its bases, bases first, each with its annotation."""
    result: dict[str, Found] = {}
    for where, part in reversed(lineage(module, owner)):
        for node in part.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_class_variable(node):
                result[node.target.id] = Found(where, node.annotation)
    return result


def _is_class_variable(node: ast.AnnAssign) -> bool:
    return any(isinstance(n, ast.Name) and n.id in ("ClassVar", "InitVar") for n in ast.walk(node.annotation))


def kinds_of(found: Found, depth: int = _DEPTH) -> frozenset[str]:
    """What an annotation allows at its top level: builtin names, ``None``, ``Literal``, ``dataclass`` or ``other``."""
    module, node = found.module, found.node
    if isinstance(node, ast.Constant):
        return _constant_kinds(found, depth)
    if isinstance(node, ast.BinOp):
        return kinds_of(Found(module, node.left), depth) | kinds_of(Found(module, node.right), depth)
    if isinstance(node, ast.Subscript):
        return _subscript_kinds(module, node, depth)
    if isinstance(node, ast.ClassDef):
        return _class_kinds(module, node)
    if isinstance(node, ast.Name):
        return _name_kinds(module, node.id, depth)
    return frozenset({"other"})


def _constant_kinds(found: Found, depth: int) -> frozenset[str]:
    value = found.node.value if isinstance(found.node, ast.Constant) else None
    if isinstance(value, str):  # a forward reference
        return kinds_of(Found(found.module, ast.parse(value, mode="eval").body), depth)
    return frozenset({"None" if value is None else "other"})


def _subscript_kinds(module: Module, node: ast.Subscript, depth: int) -> frozenset[str]:
    name = node.value.id if isinstance(node.value, ast.Name) else ""
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Annotated":
        return kinds_of(Found(module, inner[0]), depth)
    if name in ("Optional", "Union"):
        kinds = {kind for part in inner for kind in kinds_of(Found(module, part), depth)}
        return frozenset(kinds | {"None"} if name == "Optional" else kinds)
    return frozenset({name if name in _BUILTIN else "other"})


_BUILTIN = {"bool", "int", "float", "str", "list", "tuple", "set", "dict", "Literal"}


def _name_kinds(module: Module, name: str, depth: int) -> frozenset[str]:
    if name in _BUILTIN:
        return frozenset({name})
    target = module.find(name) if depth else None
    return kinds_of(target, depth - 1) if target else frozenset({"other"})


def _class_kinds(module: Module, node: ast.ClassDef) -> frozenset[str]:
    parts = lineage(module, node)
    if any(_decorated_as_dataclass(part) for _, part in parts):
        return frozenset({"dataclass"})
    bases = {base.id for _, part in parts for base in part.bases if isinstance(base, ast.Name)}
    return frozenset({"dict" if "dict" in bases else "other"})


def _decorated_as_dataclass(node: ast.ClassDef) -> bool:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(isinstance(n, ast.Name) and n.id in ("config", "dataclass") for n in names)
