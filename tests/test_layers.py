"""Who may import whom: the table of the design, read from the import statements themselves."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("backbones", "encoders", "decoders", "objectives", "dynamics", "tokenizers", "priors")
BASE = {"ocrl.types", "ocrl.interfaces"}
PROPERTIES = {"ocrl.properties"}
TRAINING = {
    *("average_precision", "baselines", "charts", "check", "checkpoint", "colours", "data"),
    *("device", "diagnose", "discovery", "distributed", "health", "horizon", "horizon_report"),
    *("interrupt", "lettering", "log", "matching", "merging", "meter", "metrics", "model"),
    *("monitor", "novel_views", "novel_views_report", "page", "posed", "properties", "report"),
    *("scene_prior", "schedules", "set_prediction", "slot_world", "step", "tables", "train"),
    *("views_monitor", "visualize", "world_model"),
}
LEAVES = {
    *("health", "interfaces", "interrupt", "log", "matching", "metrics", "schedules", "types"),
}
ONLY_IN = {
    "hydra": {"scripts/"},
    "omegaconf": {"ocrl/checkpoint.py", "scripts/"},
    "stable_baselines3": {"agents/"},
    "sb3_contrib": {"agents/"},
    "crafter": {"envs/crafter", "envs/policies_crafter"},
    "minigrid": {"envs/minigrid", "envs/policies_minigrid"},
    "transformers": {"ocrl/backbones/vit.py"},
    "mujoco": {"envs/mujoco_model.py"},
}


def sources():
    return [
        path
        for folder in ("ocrl", "envs", "agents", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imports(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def allowed(path):
    """The packages of this project that a file may import; None for all."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "scripts":
        return None
    where = "/".join(parts)
    if parts[0] == "agents":
        # An agent receives a built environment; the adapter also wraps one.
        library = {f"ocrl.{entry.stem}" for entry in (ROOT / "ocrl").iterdir()}
        adapted = {"ocrl.envs.slots"} if where == "agents/vector.py" else set()
        return library | adapted | {"ocrl.agents", "ocrl.load", "ocrl.__version__"}
    if parts[0] == "envs":
        encoding = {"ocrl.stream"} if where == "envs/slots.py" else set()
        return BASE | {"ocrl.data", "ocrl.envs", "ocrl.__version__"} | encoding
    part = parts[1].removesuffix(".py")
    if part == "nn":
        return {"ocrl.nn"}
    if part in PARTS:
        return BASE | {f"ocrl.{part}", "ocrl.nn", "ocrl.initializers", "ocrl.matching"} | PROPERTIES
    if part == "initializers":
        return BASE | {"ocrl.nn"}
    if part == "stream":
        # Cameras are checked where they are given, and geometry is that of masks.
        return BASE | {"ocrl.initializers", "ocrl.nn.location", "ocrl.nn.rays"}
    if part == "data":
        # Episodes with cameras are checked where they are written.
        return BASE | {"ocrl.data", "ocrl.nn.rays"} | PROPERTIES
    if part in ("properties", "average_precision"):
        return BASE
    if part in (
        "types",
        "interfaces",
        "metrics",
        "health",
        "matching",
        "log",
        "schedules",
        "interrupt",
    ):
        return BASE | {"ocrl.metrics", "ocrl.matching"}
    if part == "__init__":
        return {"ocrl.checkpoint"}
    permitted = BASE | {f"ocrl.{name}" for name in TRAINING}
    if part == "inspection":
        return permitted | {"ocrl.inspection"}
    # Average precision is of one kind of decoder only, which tells what it predicts; there is one
    # kind of outcome of a world model. Posed views are measured where their cameras are.
    own = {
        "set_prediction": "ocrl.decoders.properties",
        "slot_world": "ocrl.nn.outcome",
        "world_model": "ocrl.nn.outcome",
        "posed": "ocrl.nn.rays",
        "novel_views": "ocrl.nn.orbit",
    }
    return permitted | ({own[part]} if part in own else set())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_within_the_layers(path):
    permitted = allowed(path)
    where = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        package = name.split(".")[0]
        assert package not in ("tests", "envs", "agents", "configs"), f"{where} imports {name}"
        if package == "ocrl" and permitted is not None:
            is_module = name == "ocrl" or is_under(name, permitted)
            from_package = any(other.startswith(f"{name}.") for other in permitted)
            assert is_module or from_package, f"{where} may not import {name}"
        if package in ONLY_IN:
            assert any(part in where for part in ONLY_IN[package]), f"{where} may not import {name}"
        if where.startswith("ocrl/nn/"):
            standard = {"torch", "einops", "ocrl", *sys.stdlib_module_names}
            assert package in standard, f"{where} may not import {name}"


def test_files_are_found():
    assert len(sources()) > 30


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_print_no_star_no_hasattr(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "hasattr"), f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}"
    assert path.read_text().isascii(), path
