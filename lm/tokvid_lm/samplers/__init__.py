"""Loops that draw ids from a model, one file a loop."""
