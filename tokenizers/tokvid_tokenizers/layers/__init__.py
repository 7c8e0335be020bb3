"""Layers that see the present and the past of a clip, never its future."""
