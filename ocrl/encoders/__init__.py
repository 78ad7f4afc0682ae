"""Tokens to slots, one file per paper."""
