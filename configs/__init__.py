"""The Hydra configuration groups of the commands, shipped as package data."""
