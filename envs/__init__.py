"""Environments with exact object masks. Import this package as `ocrl.envs`.

Importing it registers `ocrl/<Name>-v0` with Gymnasium for every file in `configs/env`.
"""

if __name__ == "envs":
    raise ImportError("'envs' is not a package of its own: write 'import ocrl.envs'")

from ocrl.envs.interface import PRESETS, ObjectEnv
from ocrl.envs.registry import make, names, register
from ocrl.envs.vector import make_vec

__all__ = ["PRESETS", "ObjectEnv", "make", "make_vec", "names"]

register()
