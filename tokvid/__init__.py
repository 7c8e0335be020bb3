"""tokvid: train video codecs, teach language models their codes, and generate video.

``import tokvid`` is cheap: the names below are imported when they are first used, and never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokvid.video import Video, read_video, write_video

__version__ = "0.1.0"

__all__ = ["Video", "__version__", "read_video", "write_video"]

_LAZY = ("Video", "read_video", "write_video")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from tokvid import video

        return getattr(video, name)
    raise AttributeError(f"module 'tokvid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
