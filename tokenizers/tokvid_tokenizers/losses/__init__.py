"""Losses that codecs are trained with, one file a kind."""
