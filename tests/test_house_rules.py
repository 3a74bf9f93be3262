"""The layout's rules, held by walking the imports: who may import whom."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftrae_cli"

# Rooms and what each may import of the package, besides itself. A module beside the rooms is
# a room of its own; `errors` and the package's `__init__` are open to everyone.
ROOMS: Mapping[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "files": set(),
    "hub": set(),
    "config": set(),
    "flow": set(),
    "drift": {"flow"},
    "geometry": {"flow"},
    "models": {"flow", "files"},
    "data": {"flow", "files"},
    "fidelity": {"flow", "files"},
    "engine": {"drift", "geometry", "fidelity", "models", "data", "flow", "files", "hub"},
    "engine/build": {"config"},  # on top of what `engine` may
    "engine/status": {"config"},  # `build` imports torch, and a status is to be quick
    "cli": {"engine", "config", "hub"},
}

# Distributions that only some rooms may import; None is nobody.
OWNERS: Mapping[str, str | None] = {
    "typer": "cli",
    "rich": "cli",
    "click": None,
    "huggingface_hub": "hub",
    "torch_fidelity": "fidelity",
    "matplotlib": "engine",
    "yaml": "config",
    "diffusers": "models",
}
SLOW = {"torch", "torchvision", "timm", "numpy", "torch_fidelity", "matplotlib", "diffusers"}
QUICK_ROOMS = {"__init__", "__main__", "errors", "files", "hub", "config", "cli"}
# Modules of other rooms that commands use without torch.
QUICK_MODULES = {
    f"engine/{name}" for name in ("metrics_log", "health", "status", "curves", "drawing")
}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that are imported below `tree`, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from driftrae_cli import hub` imports a room by its name in the list.
            whole = module == "driftrae_cli"
            names = [f"{module}.{alias.name}" for alias in node.names] if whole else [module]
            yield from ((name, node.lineno) for name in names)


def imported_when_loaded(tree: ast.Module) -> Iterator[str]:
    """Dotted names that are imported outside of functions."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (name for name, _ in imported(node))


def room_of(dotted: str) -> str:
    return dotted.split("/")[0]


def violations(module: str, source: str) -> list[str]:
    """What `module`, a path in the package without its suffix, does against the rules."""
    tree = ast.parse(source)
    room = room_of(module)
    if room not in ROOMS:
        return [f"{module}: no such room"]
    allowed = ROOMS[room] | ROOMS.get(module, set()) | {room, "errors", "__init__"}
    found = []
    for name, line in imported(tree):
        top, _, below = name.partition(".")
        if name.startswith("."):
            found.append(f"{module}:{line}: relative import")
        elif top == "driftrae_cli":
            target = below.split(".")[0]
            if target in ROOMS and target not in allowed:
                found.append(f"{module}:{line}: {room} -> {target}")
        elif top in OWNERS and OWNERS[top] != room:
            found.append(f"{module}:{line}: {room} -> {top}")
    if room in QUICK_ROOMS or module in QUICK_MODULES:
        slow = {name.split(".")[0] for name in imported_when_loaded(tree)} & SLOW
        found += [f"{module}: {name} at module level" for name in sorted(slow)]
    if room != "cli":
        found += [f"{module}:{line}: prints" for line in prints(tree)]
    return found


def prints(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id == "print":
            yield node.lineno


FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("module", FILES)
def test_module_keeps_the_rules(module):
    assert violations(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("engine/train", "from driftrae_cli.cli.app import app", "engine -> cli"),
        ("drift/field", "from driftrae_cli.config.schema import X", "drift -> config"),
        ("engine/train", "def f():\n    import driftrae_cli.config.load", "engine -> config"),
        ("models/rae", "from driftrae_cli import data", "models -> data"),
        ("data/images", "from driftrae_cli.models.rae import RAE", "data -> models"),
        ("flow/path", "from driftrae_cli.drift.field import V", "flow -> drift"),
        ("cli/app", "from driftrae_cli.models import rae", "cli -> models"),
        ("engine/train", "import rich.progress", "engine -> rich"),
        ("cli/app", "import click", "cli -> click"),
        ("engine/sample", "from huggingface_hub import x", "engine -> huggingface_hub"),
        ("engine/rundir", "import yaml", "engine -> yaml"),
        ("engine/evaluate", "import torch_fidelity", "engine -> torch_fidelity"),
        ("engine/load", "def f():\n    import diffusers", "engine -> diffusers"),
        ("cli/plot", "def f():\n    import matplotlib", "cli -> matplotlib"),
        ("engine/curves", "import matplotlib", "matplotlib at module level"),
        ("engine/status", "import torch", "torch at module level"),
        ("cli/app", "try:\n    import torch.nn\nexcept ImportError: pass", "torch at module"),
        ("config/load", "class A:\n    import numpy", "numpy at module level"),
        ("engine/train", "def f():\n    print(1)", "prints"),
        ("flow/path", "from .solvers import solve", "relative import"),
        ("utils/misc", "", "no such room"),
    ],
)
def test_a_breach_is_seen(module, source, found):
    [text] = violations(module, source)
    assert found in text


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine/build", "from driftrae_cli.config.schema import DistillConfig"),
        ("cli/distill", "def f():\n    import torch"),
        ("hub", "def f():\n    from huggingface_hub import hf_hub_download"),
        ("models/rae", "import torch\nfrom driftrae_cli.models.decoder import ViTDecoder"),
    ],
)
def test_what_is_allowed_is_not_a_breach(module, source):
    assert violations(module, source) == []
