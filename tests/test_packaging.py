"""What is installed is what is in the tree, under names that stay unique."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def packages_in_the_tree():
    found = set()
    for folder, name in {
        "ocrl": "ocrl",
        **{v: k for k, v in SETUPTOOLS["package-dir"].items()},
    }.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *parts]))
    return found


def test_the_package_list_is_the_tree():
    assert set(SETUPTOOLS["packages"]) == packages_in_the_tree()
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


def test_every_folder_with_code_is_a_package():
    for folder in ("ocrl", "envs", "agents"):
        for source in (ROOT / folder).rglob("*.py"):
            assert (source.parent / "__init__.py").is_file(), f"{source.parent} has no __init__.py"


def test_every_configuration_is_package_data():
    patterns = SETUPTOOLS["package-data"]["ocrl.configs"]
    matched = {path for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    assert matched == set((ROOT / "configs").rglob("*.yaml")) and matched


def python(code, *, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["envs", "agents"])
def test_the_bare_names_say_what_to_import(name):
    done = python(f"import {name}", cwd=ROOT)
    assert done.returncode != 0
    assert f"import ocrl.{name}" in done.stderr.splitlines()[-1]


def test_the_version_is_one():
    done = python("import ocrl; assert ocrl.load; raise SystemExit(ocrl.__version__)", cwd=ROOT)
    assert done.stderr.strip() == PROJECT["project"]["version"]
