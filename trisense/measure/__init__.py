"""Measuring: how often a model is right."""
