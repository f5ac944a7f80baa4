"""Helpers of every layer: files, checks of arguments, seeds, optional dependencies."""
