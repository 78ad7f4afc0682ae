"""Training signals, one file each."""
