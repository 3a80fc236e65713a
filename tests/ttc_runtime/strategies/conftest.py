"""Engines with scripted models for the strategies' tests."""

from scripted import scripted

__all__ = ["scripted"]
