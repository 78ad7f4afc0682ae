"""Layers without opinions: attention, transformer blocks, positions, convolutions."""
