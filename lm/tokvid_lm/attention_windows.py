"""How far the layers of a model look back, by its configuration."""

from __future__ import annotations

from transformers import PreTrainedConfig


def layer_windows(config: PreTrainedConfig) -> int | dict[str, int | None] | None:
    """The positions that attention sees, itself included (None: all), or where layers differ one by their kind.

    Models whose layers differ take a mapping of masks by the names of ``config.layer_types``.
    """
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return window if getattr(config, "use_sliding_window", True) else None
    windows = {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}
    return windows if len(windows) > 1 else next(iter(windows.values()))
