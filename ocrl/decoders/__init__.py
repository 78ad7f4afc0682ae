"""Slots to pixels, features or tokens, one file per kind."""
