"""Where clips come from: folders of videos, the sprite world, and stored codes."""
