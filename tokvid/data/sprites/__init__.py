"""The sprite world: the embedded dataset of captioned clips, and the oracle that judges clips by looking."""
