"""Distributions over the codes of scenes, one file per kind."""
