"""Frames to tokens of a finite vocabulary and back, one file per kind."""
