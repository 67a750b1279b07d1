"""The documentation of the running Python as a collection of documents.

Read from the sources of the standard library with `ast`, so nothing is imported and nothing runs. What is written in C
has no such source: a fixed list of modules, loaded in every process by this package's own imports, is asked for it. The
chapters on the language come from the source of `pydoc_data.topics`.

A document is a public module, class, function, method or property with a docstring, or one chapter:

    id      the qualified name: `pathlib.Path.read_text`; built-ins bare (`str.split`); chapters `topics.with`
    title   the qualified name and the signature: `shutil.move(src, dst, copy_function=copy2)`; a chapter's heading
    text    the docstring

An object has one document however many modules re-export it, under the name that the public uses: `asyncio.run`, which
is defined in `asyncio.runners`, or `datetime.date`, which newer versions define in `_pydatetime`.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from inranker.errors import InputError
from inranker.types import Document

MIN_WORDS = 8  # in title and text together: `re.escape(pattern)` with its six words says enough

# Tests and their fixtures, applications, bundled installers, code tables, and the 2-to-3 converter.
_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "encodings"}
    | {"distutils", "antigravity", "this"}
)

# The modules asked for what is written in C. All are in sys.modules once `inranker.types` (hence numpy) is imported, so
# that the collection does not depend on what else a program has loaded.
_LOADED: tuple[str, ...] = (
    "builtins",
    "codecs",
    "collections",
    "contextvars",
    "functools",
    "io",
    "itertools",
    "marshal",
    "math",
)
_LOADED += ("operator", "os", "re", "_signal", "struct", "sys", "time", "weakref")
_C_MEMBERS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)

_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def read_pythondocs(library: Path | None = None) -> list[Document]:
    """Documents of the standard library, sorted by id; of documents with the same text only one is kept.

    `library`: folder of the sources. None is that of the running Python; of another one only what is in the folder is
    read, nothing from this process.

    Raises:
        InputError: the folder has no sources (some embedded Pythons ship byte code only).
    """
    folder = library or Path(os.__file__).parent
    modules = dict(_read_modules(folder))
    if "_collections_abc" in modules:
        # From 3.13 on, this module has no source of its own: `collections` sets it up when it is imported.
        modules.setdefault("collections.abc", modules["_collections_abc"])
    if not modules:
        raise InputError(
            f"{folder}: no sources of the standard library; pythondocs needs a Python that has its .py files"
        )
    found: dict[str, Document] = {}
    loaded = _loaded_documents() if library is None else iter(())
    for source in (_source_documents(modules), loaded, _topics(folder / "pydoc_data" / "topics.py")):
        for document in source:
            if len(re.findall(r"\w+", document.content)) >= MIN_WORDS:
                found.setdefault(document.id, document)
    return _merge_duplicates(found.values())


def _merge_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Of documents with the same text the one with the fewest parts in its name; of these the first."""
    kept: dict[str, Document] = {}
    for document in sorted(documents, key=lambda document: document.id.count(".")):
        kept.setdefault(" ".join(document.text.split()), document)
    return sorted(kept.values(), key=lambda document: document.id)


def _is_public(qualified_name: str) -> bool:
    return not any(part.startswith("_") for part in qualified_name.split("."))


# ---- sources in Python ----------------------------------------------------------------------------------------------


class _Module:
    """What a module's source says of its names: the definitions, and where the imported ones come from."""

    def __init__(self, name: str, source: bytes, is_package: bool) -> None:
        self.name = name
        self.is_package = is_package
        self.definitions: dict[str, _Definition] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self.stars: list[str] = []
        self.exported: list[str] = []
        tree = ast.parse(source)
        self.docstring = ast.get_docstring(tree)
        for statement in _statements(tree.body):
            if isinstance(statement, _Definition):
                self.definitions.setdefault(statement.name, statement)
            elif isinstance(statement, ast.ImportFrom):
                self._add_import(statement)
            elif isinstance(statement, ast.Assign | ast.AugAssign):
                self._add_assigned(statement)

    def _add_import(self, statement: ast.ImportFrom) -> None:
        source = statement.module or ""
        if statement.level:
            package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
            source = ".".join([*package[: len(package) - statement.level + 1], *filter(None, [source])])
        for alias in statement.names:
            if alias.name == "*":
                self.stars.append(source)
            else:
                self.imports.setdefault(alias.asname or alias.name, (source, alias.name))

    def _add_assigned(self, statement: ast.Assign | ast.AugAssign) -> None:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        name = target.id if isinstance(target, ast.Name) else ""
        if name == "__all__" and isinstance(statement.value, ast.List | ast.Tuple):
            self.exported.extend(ast.literal_eval(statement.value))
        elif name == "__doc__" and isinstance(statement.value, ast.Constant):
            self.docstring = inspect.cleandoc(str(statement.value.value))

    def re_exports(self, name: str, source: str) -> bool:
        """Whether `name`, imported here from the module `source`, is offered to the public here."""
        if self.exported:
            return name in self.exported
        return (self.is_package and source.startswith(f"{self.name}.")) or not _is_public(source)


def _read_modules(folder: Path) -> Iterator[tuple[str, _Module]]:
    for path in sorted(folder.rglob("*.py")):
        *parents, stem = path.relative_to(folder).with_suffix("").parts
        parts = parents if stem == "__init__" else [*parents, stem]
        if not parts or parts[0] not in sys.stdlib_module_names or not _SKIPPED.isdisjoint(parts) or stem == "__main__":
            continue
        name = ".".join(parts)
        yield name, _Module(name, path.read_bytes(), stem == "__init__")


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class body, those under `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement.body)
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(statement, "orelse", []))


def _source_documents(modules: dict[str, _Module]) -> Iterator[Document]:
    public_names: dict[_Definition, str] = {}
    homes: dict[_Definition, _Module] = {}
    for module_name, module in modules.items():
        if not _is_public(module_name):
            continue
        for name, home, definition in _public_definitions(modules, module):
            qualified = f"{module_name}.{name}"
            homes[definition] = home
            if definition not in public_names or qualified.count(".") < public_names[definition].count("."):
                public_names[definition] = qualified
        if module.docstring:
            yield Document(module_name, module.docstring, module_name)
    for definition, name in public_names.items():
        yield from _definition_documents(modules, homes[definition], definition, name, public_names)


def _public_definitions(modules: dict[str, _Module], module: _Module) -> Iterator[tuple[str, _Module, _Definition]]:
    """(name, defining module, definition) of all that `module` defines or re-exports; its own definitions first."""
    for name, definition in module.definitions.items():
        if _is_public(name):
            yield name, module, definition
    imported = [(name, source) for name, (source, _) in module.imports.items()]
    for source in module.stars:
        imported += [(name, source) for name in _offered(modules, source)]
    for name, source in imported:
        if _is_public(name) and name not in module.definitions and module.re_exports(name, source):
            target = _resolve(modules, module.name, name)
            if target:
                yield name, *target


def _offered(modules: dict[str, _Module], name: str) -> list[str]:
    """The names that `from name import *` brings."""
    module = modules.get(name)
    if module is None:
        return []
    return module.exported or [name for name in [*module.definitions, *module.imports] if _is_public(name)]


def _resolve(
    modules: dict[str, _Module], source: str, name: str, seen: frozenset[str] = frozenset()
) -> tuple[_Module, _Definition] | None:
    """The definition that `name` stands for in the module `source`, through any chain of imports."""
    module = modules.get(source)
    if module is None or source in seen:
        return None
    if name in module.definitions:
        return module, module.definitions[name]
    if name in module.imports:
        return _resolve(modules, *module.imports[name], seen | {source})
    candidates = (_resolve(modules, star, name, seen | {source}) for star in module.stars)
    return next((target for target in candidates if target), None)


def _definition_documents(
    modules: dict[str, _Module],
    home: _Module,
    definition: _Definition,
    name: str,
    public_names: dict[_Definition, str],
) -> Iterator[Document]:
    docstring = ast.get_docstring(definition)
    if docstring:
        yield Document(name, docstring, name + _signature(definition, in_class=False))
    if isinstance(definition, ast.ClassDef):
        yield from _member_documents(modules, home, definition, name, public_names)


def _member_documents(
    modules: dict[str, _Module], home: _Module, owner: ast.ClassDef, name: str, public_names: dict[_Definition, str]
) -> Iterator[Document]:
    for member in _statements(owner.body):
        if not isinstance(member, _Definition) or not _is_public(member.name):
            continue
        if isinstance(member, ast.ClassDef):
            yield from _definition_documents(modules, home, member, f"{name}.{member.name}", public_names)
        elif docstring := ast.get_docstring(member):
            qualified = f"{name}.{member.name}"
            yield Document(qualified, docstring, qualified + _signature(member, in_class=True))
    # What a class has from a base that is not public itself, the public finds in the class.
    for base in owner.bases:
        target = _resolve(modules, home.name, base.id) if isinstance(base, ast.Name) else None
        if target and isinstance(target[1], ast.ClassDef) and target[1] not in public_names:
            yield from _member_documents(modules, target[0], target[1], name, public_names)


def _signature(definition: _Definition, in_class: bool) -> str:
    """`(a, b=1)` without `self`; of a class that of its constructor; empty for a property."""
    if isinstance(definition, ast.ClassDef):
        constructors = [
            node
            for node in _statements(definition.body)
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__new__")
        ]
        return _signature(constructors[0], in_class=True) if constructors else ""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in definition.decorator_list}
    if decorators & {"property", "cached_property", "abstractproperty"}:
        return ""
    arguments = ast.unparse(definition.args)
    if in_class and "staticmethod" not in decorators:
        arguments = re.sub(r"^\w+(, /)?(, |$)", "", arguments)
    return f"({arguments})"


# ---- what is written in C -------------------------------------------------------------------------------------------


def _loaded_documents() -> Iterator[Document]:
    for loaded_name in _LOADED:
        module = sys.modules[loaded_name]
        public_name = loaded_name.lstrip("_")
        prefix = "" if public_name == "builtins" else f"{public_name}."
        # What the objects that the module offers as its own say of their home; the C half of `os` is `posix` or `nt`.
        homes = {public_name, loaded_name, f"_{public_name}"} | ({"posix", "nt"} if public_name == "os" else set())
        if public_name == loaded_name:
            yield from _loaded_document(public_name, module)
        # Shorter names first: of equal texts `set.union` is kept, not `frozenset.union`.
        for name, value in sorted(vars(module).items(), key=lambda item: (len(item[0]), item[0])):
            if module is sys:  # A program may replace `sys.excepthook`; the original stays under `__excepthook__`.
                value = getattr(sys, f"__{name}__", value)
            if not _is_public(name) or not isinstance(value, types.BuiltinFunctionType | type):
                continue
            if value.__module__ in homes or (value is open and public_name == "builtins"):
                yield from _loaded_document(prefix + name, value)
                for member, attribute in _loaded_members(value):
                    yield from _loaded_document(f"{prefix}{name}.{member}", attribute)


def _loaded_members(value: object) -> Iterator[tuple[str, object]]:
    """The public attributes of a class, and those it has from private bases; none of a function."""
    if isinstance(value, type):
        for base in [value, *(base for base in value.__mro__[1:] if not _is_public(base.__name__))]:
            for name, attribute in sorted(vars(base).items()):
                if isinstance(attribute, staticmethod):
                    attribute = attribute.__func__  # its own docstring would be that of `staticmethod`
                if _is_public(name) and isinstance(attribute, _C_MEMBERS):
                    yield name, attribute


def _loaded_document(name: str, value: object) -> Iterator[Document]:
    docstring = getattr(value, "__doc__", None)
    if isinstance(docstring, str):
        signature = getattr(value, "__text_signature__", None) or ""
        signature = re.sub(r"\(\$\w+(, /)?(, )?", "(", signature)
        yield Document(name, inspect.cleandoc(docstring), name + signature)


# ---- the chapters on the language -----------------------------------------------------------------------------------


def _topics(path: Path) -> Iterator[Document]:
    """The chapters of `pydoc_data.topics`, whose first line is the heading; none where that module is not installed."""
    if not path.is_file():
        return
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "topics":
            for name, chapter in sorted(ast.literal_eval(statement.value).items()):
                heading, _, text = chapter.partition("\n")
                yield Document(f"topics.{name}", text.lstrip("*=-~ \n").rstrip(), heading.strip())
