"""Executable companion to ten papers on noise, robustness, identifiability and hierarchy in generative models."""

__version__ = "0.1.0"
