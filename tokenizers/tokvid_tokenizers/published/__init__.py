"""Codecs that others have published, one file each: their networks in our layers, under their own names of weights."""
