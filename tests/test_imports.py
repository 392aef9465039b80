"""Who may import whom, read from the sources: the rules that keep the house's rooms apart."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import pytest

import rnnlm

PACKAGE = Path(rnnlm.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
RUNTIME = {"click", "nltk", "numpy", "threadpoolctl", "tqdm"}  # what pyproject.toml makes pip install
EXTRA = {"jinja2", "kenlm", "markupsafe", "matplotlib", "mpi4py", "rapidfuzz"}  # what it installs if asked to


class Import(NamedTuple):
    """One imported name."""

    module: str  # "rnnlm.model"
    name: str | None  # "Rows", or None where the module itself is imported
    at_top: bool  # happens when the file is imported, rather than when a function is called

    @property
    def root(self) -> str:
        """The package that the module belongs to."""
        return self.module.partition(".")[0]


def parse(source: str) -> ast.Module:
    """Read a source, without what only type checkers execute."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                kept = [part.orelse if _is_for_type_checkers(part) else [part] for part in block]
                setattr(node, field, list(itertools.chain(*kept)))
    return tree


def _is_for_type_checkers(node: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST, package: str = "rnnlm", at_top: bool = True) -> Iterator[Import]:
    """List what a source imports; `package` is where its relative imports start."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield from (Import(module, alias.name, at_top) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, package, at_top and not inside)


def imports_of(file: str) -> list[Import]:
    """List what a file of the package imports."""
    package = ".".join(("rnnlm", *Path(file).parent.parts))
    return list(imports(parse((PACKAGE / file).read_text("utf-8")), package))


def is_command_line(file: str) -> bool:
    """Say whether a file belongs to the command line, which includes `python -m rnnlm`."""
    return file.startswith("cli/") or file == "__main__.py"


def modules_of(imported: Import) -> set[str]:
    """Name the modules that may be meant: in `from rnnlm import cli`, the name is one."""
    return {imported.module, f"{imported.module}.{imported.name}"}


def terminal_uses(tree: ast.AST) -> list[str]:
    """List calls and attributes through which a source would talk to a terminal."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in {"print", "input"}:
            found.append(node.id)
        if isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr", "stdin", "__stdout__", "__stderr__"}:
            found.append(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module == "sys":
            found += [alias.name for alias in node.names if alias.name in {"stdout", "stderr", "stdin"}]
    return found


def private_uses(tree: ast.AST, module: str) -> list[str]:
    """List the private names of another module that a source imports, and private attributes of anything but self."""
    found = [imported.name for imported in imports(tree) if imported.module == module and _is_private(imported.name)]
    for node in ast.walk(tree):
        of_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not of_self:
            found.append(node.attr)
    return [name for name in found if name]


def _is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.endswith("__")


def test_files_are_found() -> None:
    """The rules below are about files that exist."""
    assert {"model.py", "gradcheck.py", "text.py", "training.py", "errors.py", "cli/__init__.py"} <= set(FILES)


def test_model_stands_alone() -> None:
    """model.py imports numpy and the standard library, and can be copied out."""
    roots = {imported.root for imported in imports_of("model.py")}
    assert roots - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize(
    ("file", "known"),
    [
        ("batches.py", {"corpus", "errors", "model"}),
        ("checking.py", {"errors"}),
        ("clusters.py", set()),
        ("detokenize.py", set()),
        ("formats.py", {"scoring", "vocabulary"}),
        ("entries.py", {"errors", "files", "vocabulary"}),
        ("settings.py", {"checking", "errors", "sources"}),
        ("sources.py", {"errors"}),
        ("shortcuts.py", set()),
        ("text.py", {"checking", "errors", "settings", "shortcuts", "sources", "vocabulary", "workers"}),
        ("vocabulary.py", {"errors", "files", "settings"}),
        ("workers.py", set()),
    ],
)
def test_what_a_file_knows_of_the_others(file: str, known: set[str]) -> None:
    """The files that all else is built on import what is named here and nothing else: workers know no text."""
    modules = {module for imported in imports_of(file) for module in modules_of(imported)}
    assert {Path(name).stem for name in FILES if f"rnnlm.{Path(name).stem}" in modules} == known


def test_errors_import_nothing() -> None:
    """errors.py, which everything may import, imports nothing."""
    assert imports_of("errors.py") == []


@pytest.mark.parametrize("file", FILES)
def test_click_and_tqdm_live_under_cli(file: str) -> None:
    """Only the command line knows that there is a terminal."""
    if not is_command_line(file):
        assert not {"click", "tqdm"} & {imported.root for imported in imports_of(file)}


@pytest.mark.parametrize("file", FILES)
def test_nltk_is_known_to_text_alone(file: str) -> None:
    """NLTK, which loads 500 modules, is imported inside functions of text.py."""
    found = [imported for imported in imports_of(file) if imported.root == "nltk"]
    assert file == "text.py" or not found
    assert not any(imported.at_top for imported in found)


@pytest.mark.parametrize("file", FILES)
def test_matplotlib_is_known_to_pictures_alone(file: str) -> None:
    """matplotlib, an optional extra, is imported inside functions of the files that draw."""
    found = [imported for imported in imports_of(file) if imported.root == "matplotlib"]
    assert file in {"curve.py", "pictures.py"} or not found


@pytest.mark.parametrize("file", FILES)
def test_jinja_is_known_to_the_page_alone(file: str) -> None:
    """jinja2, an optional extra, and what it brings along are imported inside functions of page.py."""
    assert file == "page.py" or not {"jinja2", "markupsafe"} & {imported.root for imported in imports_of(file)}


@pytest.mark.parametrize("file", FILES)
def test_mpi_is_known_to_ranks_alone(file: str) -> None:
    """mpi4py, an optional extra, is imported inside functions of ranks.py."""
    assert file == "ranks.py" or "mpi4py" not in {imported.root for imported in imports_of(file)}


@pytest.mark.parametrize("file", FILES)
def test_nothing_imports_the_command_line(file: str) -> None:
    """Commands use the library, never the other way round."""
    if not is_command_line(file):
        modules = {module for imported in imports_of(file) for module in modules_of(imported)}
        assert not {module for module in modules if module == "rnnlm.cli" or module.startswith("rnnlm.cli.")}


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("cli/")])
def test_commands_start_fast(file: str) -> None:
    """At their top, modules of the command line import click, the standard library, and what imports no more."""
    light = {"rnnlm.errors", "rnnlm.checking", "rnnlm.settings", "rnnlm.__version__"}
    for imported in imports_of(file):
        if imported.at_top and imported.root not in sys.stdlib_module_names | {"click"}:
            modules = modules_of(imported)
            assert modules & light or imported.module.startswith("rnnlm.cli"), imported


@pytest.mark.parametrize("file", [file for file in FILES if not is_command_line(file)])
def test_the_library_is_silent(file: str) -> None:
    """Nothing outside the command line prints or asks; sources.py alone reads standard input, where a text may come."""
    allowed = {"stdin"} if file == "sources.py" else set()
    assert set(terminal_uses(parse((PACKAGE / file).read_text("utf-8")))) <= allowed


def test_the_referee_knows_public_names_only() -> None:
    """gradcheck.py imports model.py's public names, numpy and the standard library, and touches nothing private."""
    found = imports_of("gradcheck.py")
    assert {imported.module for imported in found if imported.root == "rnnlm"} == {"rnnlm.model"}
    assert {imported.root for imported in found} - sys.stdlib_module_names == {"numpy", "rnnlm"}
    assert private_uses(parse((PACKAGE / "gradcheck.py").read_text("utf-8")), "rnnlm.model") == []


@pytest.mark.parametrize("file", FILES)
def test_only_declared_packages_are_imported(file: str) -> None:
    """An installed wheel needs what it declares; an extra is imported where it is used."""
    for imported in imports_of(file):
        assert imported.root in sys.stdlib_module_names | RUNTIME | EXTRA | {"rnnlm"}, imported
        assert not (imported.root in EXTRA and imported.at_top), imported


def test_imports_are_found_wherever_they_stand() -> None:
    """The reader of imports sees all forms, knows what a function holds, and skips what is for type checkers."""
    source = """
import a.b, c
from d import e as f
from . import g
from .h import i
from ..j import k
if TYPE_CHECKING:
    import unseen
else:
    import seen
try:
    import l
except ImportError:
    import m
class C:
    import n
    def method(self):
        if self:
            import o
"""
    found = {(imported.module, imported.name, imported.at_top) for imported in imports(parse(source), "rnnlm.cli")}
    assert found == {
        ("a.b", None, True),
        ("c", None, True),
        ("d", "e", True),
        ("rnnlm.cli", "g", True),
        ("rnnlm.cli.h", "i", True),
        ("rnnlm.j", "k", True),
        ("seen", None, True),
        ("l", None, True),
        ("m", None, True),
        ("n", None, True),
        ("o", None, False),
    }


@pytest.mark.parametrize(
    "source", ["print(1)", "sys.stderr.write('')", "from sys import stdout", "show = print", "input()"]
)
def test_terminal_uses_are_found(source: str) -> None:
    """Each way of reaching the terminal is seen."""
    assert terminal_uses(ast.parse(source))


@pytest.mark.parametrize("source", ["from rnnlm.model import _split", "model._pool.map(f)"])
def test_private_uses_are_found(source: str) -> None:
    """A private name is seen, imported or reached."""
    assert private_uses(ast.parse(source), "rnnlm.model")


def test_help_loads_neither_numpy_nor_nltk() -> None:
    """Importing every command, as `rnnlm --help` does, leaves the slow packages unloaded."""
    modules = [f"rnnlm.cli.{Path(file).stem}" for file in FILES if file.startswith("cli/") and "__" not in file]
    source = f"import sys, {', '.join(modules)}; print(*{{'numpy', 'nltk', 'tqdm', 'matplotlib'}} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_scoring_loads_what_it_needs() -> None:
    """Scoring starts without modules that take long to load, and that only other commands need."""
    slow = ["email", "hashlib", "multiprocessing", "nltk", "numpy.random", "tomllib", "tqdm"]
    source = f"import sys, rnnlm.cli.score, rnnlm.formats, rnnlm.mixture; print(*{{*{slow}}} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
