"""The installed wheel, in an environment that has nothing but what it asks for."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")  # of the environment that follows


def call(*command, cwd=ROOT):
    """Run a command, which finds modules in its own environment alone and compiles them once; return what it did."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    command = [str(part) for part in command]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=480, env=own)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the Python of a fresh environment in which a fresh wheel is installed, and no pip."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: what an earlier build left in the tree must not get in
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src/rnnlm", source / "src/rnnlm")
    venv.create(folder / "env")
    python = folder / "env/bin/python"
    installed = call(*PIP, python, "install", "--quiet", "--no-compile", source)  # builds a wheel, and installs that
    assert installed.returncode == 0, installed.stderr
    return python


def test_the_wheel_trains_and_generates_without_any_development_package(python, tmp_path):
    """From the wheel alone: train on raw text, generate, and check gradients."""
    listed = call(*PIP, python, "list").stdout
    assert "rnnlm-numpy" in listed
    assert not {"pytest", "ruff", "mypy", "matplotlib"} & set(listed.split())
    (tmp_path / "text.txt").write_text("The cat sleeps. The dog sings. A bird sees the cat.\n\n" * 30)
    rnnlm = python.with_name("rnnlm")
    for arguments in (
        ("train", "text.txt", "--epochs", "2", "--batch-size", "2", "--bptt", "8"),
        ("generate", "--count", "2", "--seed", "1"),
        ("evaluate", "text.txt"),
        ("info",),
        ("--help",),
    ):
        done = call(rnnlm, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    curve = call(rnnlm, "train", "text.txt", "--epochs", "2", "--overwrite", cwd=tmp_path).stderr
    assert curve.count("No learning curve") == 1
