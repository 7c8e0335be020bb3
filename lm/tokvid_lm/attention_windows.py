"""How far the layers of a model look back, by its configuration. Knows no mask."""

from __future__ import annotations

from transformers import PreTrainedConfig

from tokvid.errors import ModelError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def layer_windows(config: PreTrainedConfig) -> int | dict[str, int | None] | None:
    """The positions that attention sees, its own included (None: all), or where layers differ one by their kind.

    Models whose layers differ take a mapping of masks by the names of ``config.layer_types``. Raises
    :class:`ModelError` for layers of a kind that no window describes (linear or chunked attention).
    """
    config = config.get_text_config(decoder=True)
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return window if getattr(config, "use_sliding_window", True) else None
    if odd := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise ModelError(f"{config.model_type} has layers of {odd[0]}, which take no mask of tokvid: use another model")
    windows = {kind: window if kind == _SLIDING else None for kind in dict.fromkeys(kinds)}
    return windows if len(windows) > 1 else next(iter(windows.values()))
