"""Object-centric representations for reinforcement learning and world models."""

from pathlib import Path

_ROOT = Path(__file__).parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "envs").is_dir():
    # A bare checkout: `ocrl.envs`, `ocrl.agents` and `ocrl.configs` stand beside this folder.
    __path__.append(str(_ROOT))

from ocrl.checkpoint import load  # noqa: E402

__all__ = ["load"]
__version__ = "0.1.0"
