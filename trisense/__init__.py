"""Trisense: ask questions about pictures, sound and text; train the model that answers."""

__version__ = "0.1.0"
