"""Agents that act on slots. Import this package as `ocrl.agents`."""

if __name__ == "agents":
    raise ImportError("'agents' is not a package of its own: write 'import ocrl.agents'")

from ocrl.agents.interface import Agent
from ocrl.agents.saving import load

__all__ = ["Agent", "load"]
