"""Numbers that say how good a codec or a clip is."""
