"""The command-line flags and parser names of an installed vLLM, read from its source.

Importing vLLM takes seconds and starts machinery; its source says the same. Its parser is made of ``add_argument``
calls whose details come from annotated dataclass fields (``**get_kwargs(ModelConfig)["dtype"]``), so those calls are
followed here with the same rules as vLLM's own ``_compute_kwargs`` (vllm/engine/arg_utils.py).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmhost.env.source import Found, Module, Source, fields, kinds_of, lineage, method
from llmhost.errors import EngineError
from llmhost.facts import VllmFlag

PARSER_MODULES = (
    "vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args",
)  # fmt: skip
"""Where ``make_arg_parser`` stands: since 0.33, in 0.32, and before."""
REGISTRIES = {
    "_TOOL_PARSERS_TO_REGISTER": ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers"),
    "_REASONING_PARSERS_TO_REGISTER": ("vllm.reasoning",),
}


@dataclass(frozen=True)
class FlagFacts:
    """What the source of a vLLM says about its command line; ``flags`` are keyed as in llmhost.yaml."""

    flags: Mapping[str, VllmFlag]
    tool_call_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]


def read_flags(site_packages: Path) -> FlagFacts:
    """Read them from the vLLM below ``site_packages``; raises EngineError when its parser cannot be understood."""
    source = Source(site_packages)
    flags = {flag.name: flag for flag in _all_flags(source)}
    if "model" not in flags:
        raise EngineError(
            f"cannot read the flags of the vLLM in {site_packages}",
            "this release of llmhost does not know its layout: use the vLLM version that `llmhost setup` installs",
        )
    tools, reasoning = (_registered(source, name, modules) for name, modules in REGISTRIES.items())
    return FlagFacts(dict(sorted(flags.items())), tools, reasoning)


def _registered(source: Source, name: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of a registry that is a plain dict literal."""
    for dotted in modules:
        module = source.module(dotted)
        literal = module.names.get(name) if module else None
        if isinstance(literal, ast.Dict):
            keys = (key.value for key in literal.keys if isinstance(key, ast.Constant))
            return tuple(sorted(key for key in keys if isinstance(key, str)))
    return ()


def _all_flags(source: Source) -> Iterator[VllmFlag]:
    for dotted in PARSER_MODULES:
        module = source.module(dotted)
        function = module.names.get("make_arg_parser") if module else None
        if module and isinstance(function, ast.FunctionDef):
            yield from _Reader(module).read(function)
            return


_Group = dict[str, VllmFlag]
"""Flags of the fields of one dataclass, by field."""


class _Reader:
    """Follows one function that fills a parser; ``owner`` is the class whose method it is."""

    def __init__(self, module: Module, owner: ast.ClassDef | None = None) -> None:
        self.module = module
        self.owner = owner
        self.groups: dict[str, _Group] = {}
        """Local variables that hold ``get_kwargs(SomeConfig)``."""
        self.singles: dict[str, VllmFlag] = {}
        """Local variables that hold one field's keyword arguments."""

    def read(self, function: ast.FunctionDef) -> Iterator[VllmFlag]:
        for statement in _flat(function.body):
            if isinstance(statement, ast.For):
                yield from self._loop(statement)
            elif isinstance(statement, ast.Assign):
                self._assign(statement)
            if isinstance(statement, ast.Assign | ast.Expr | ast.Return) and isinstance(statement.value, ast.Call):
                yield from self._call(statement.value)

    def _assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if not isinstance(target, ast.Name):
            return
        if (group := self._group(node.value)) is not None:
            self.groups[target.id] = group
        elif (single := self._single(node.value)) is not None:
            self.singles[target.id] = single

    def _group(self, node: ast.expr) -> _Group | None:
        """``get_kwargs(Config)``, or ``cls._customize_cli_kwargs(variable)``."""
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Name):
            return None
        argument = node.args[0].id
        if isinstance(node.func, ast.Name) and node.func.id == "get_kwargs":
            return self._fields(argument)
        if isinstance(node.func, ast.Attribute) and argument in self.groups and self.owner:
            return _customized(self.module, self.owner, node.func.attr, self.groups[argument])
        return None

    def _fields(self, name: str) -> _Group:
        found = (self.module, self.owner) if name == "cls" and self.owner else self.module.find_class(name)
        return {key: _flag_of(key, note) for key, note in fields(*found).items()} if found else {}

    def _single(self, node: ast.expr) -> VllmFlag | None:
        """``variable["field"]`` or a variable that holds it."""
        if isinstance(node, ast.Name):
            return self.singles.get(node.id)
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and isinstance(node.slice, ast.Constant)
        ):
            return self.groups.get(node.value.id, {}).get(str(node.slice.value))
        return None

    def _loop(self, node: ast.For) -> Iterator[VllmFlag]:
        """``for key, value in variable.items(): ….add_argument(f"--{key}", **value)`` adds every field."""
        of = node.iter.func if isinstance(node.iter, ast.Call) else None
        calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and _name_of(n) == "add_argument"]
        if calls and isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name):
            yield from self.groups.get(of.value.id, {}).values()

    def _call(self, node: ast.Call) -> Iterator[VllmFlag]:
        if _name_of(node) == "add_argument":
            yield from self._argument(node)
        elif _name_of(node) == "add_cli_args" and isinstance(node.func, ast.Attribute):
            # EngineArgs.add_cli_args(parser): go on in that class.
            owner = node.func.value
            found = self.module.find_class(owner.id) if isinstance(owner, ast.Name) else None
            target = method(*found, "add_cli_args") if found else None
            if found and target:
                yield from _Reader(target[0], found[1]).read(target[1])

    def _argument(self, node: ast.Call) -> Iterator[VllmFlag]:
        flag = VllmFlag("", boolean=False)
        for keyword in node.keywords:
            if keyword.arg is None:
                flag = self._unpacked(keyword.value) or flag
        for keyword in node.keywords:
            flag = _with_keyword(flag, keyword.arg, keyword.value)
        options = (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
        for option in options:
            if option.startswith("--"):
                yield replace(flag, name=option[2:].replace("-", "_"))

    def _unpacked(self, node: ast.expr) -> VllmFlag | None:
        """``**variable["field"]`` or ``**{**variable["field"], "default": None}``."""
        if isinstance(node, ast.Dict):
            inner = (self._single(value) for key, value in zip(node.keys, node.values, strict=True) if key is None)
            return next((flag for flag in inner if flag), None)
        return self._single(node)


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements in order, those under ``if`` and ``with`` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.With):
            yield from _flat(node.body)
            yield from _flat(node.orelse if isinstance(node, ast.If) else [])


def _name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _flag_of(name: str, annotation: Found) -> VllmFlag:
    """The flag of a dataclass field, by the rules (and in the order) of vLLM's ``_compute_kwargs``."""
    kinds = kinds_of(annotation)
    if "dataclass" in kinds:
        return VllmFlag(name, boolean=False)
    if kinds == {"bool", "str", "None"}:
        return VllmFlag(name, boolean=False, optional_value=True)
    if "bool" in kinds:
        return VllmFlag(name, boolean=True, negatable=True)
    several = "Literal" not in kinds and bool(kinds & {"tuple", "list", "set"})
    return VllmFlag(name, boolean=False, multiple=several)


def _with_keyword(flag: VllmFlag, keyword: str | None, value: ast.expr | None) -> VllmFlag:
    """The flag after one keyword argument of ``add_argument``; ``value`` None means that it was deleted."""
    if keyword == "nargs":
        nargs = value.value if isinstance(value, ast.Constant) else None
        return replace(flag, multiple=nargs not in (None, "?"), optional_value=nargs == "?")
    if keyword != "action" or value is None:
        return flag
    action = value.value if isinstance(value, ast.Constant) else getattr(value, "attr", getattr(value, "id", ""))
    if action in ("store_true", "store_false", "BooleanOptionalAction"):
        return replace(flag, boolean=True, negatable=action == "BooleanOptionalAction")
    if action in ("append", "extend"):
        return replace(flag, repeated=True)
    return flag


def _customized(module: Module, owner: ast.ClassDef, name: str, group: _Group) -> _Group:
    """The group after the edits of a method and of the methods of that name that it overrides (bases first)."""
    for _, part in reversed(lineage(module, owner)):
        own = (n for n in part.body if isinstance(n, ast.FunctionDef) and n.name == name)
        for function in own:
            group = _edited(function, group)
    return group


def _edited(function: ast.FunctionDef, group: _Group) -> _Group:
    """Apply ``variable["field"]["nargs"] = …`` and ``del variable["field"]["nargs"]``."""
    group = dict(group)
    for statement in _flat(function.body):
        if isinstance(statement, ast.Assign | ast.Delete):
            value = statement.value if isinstance(statement, ast.Assign) else None
            for target in statement.targets:
                field, keyword = _edit_target(target)
                if field in group:
                    group[field] = _with_keyword(group[field], keyword, value)
    return group


def _edit_target(node: ast.expr) -> tuple[str, str]:
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        inner = node.value
        if isinstance(inner, ast.Subscript) and isinstance(inner.slice, ast.Constant):
            return str(inner.slice.value), str(node.slice.value)
    return "", ""
