"""Frames to tokens."""
