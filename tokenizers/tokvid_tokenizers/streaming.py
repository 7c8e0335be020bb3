"""Encoding and decoding a video of any length piece by piece, with exactly the result of doing it at once.

Equality holds by construction: :meth:`VideoCodec.encode` and ``decode`` run a whole clip through the same blocks that a
stream waits for. The first block is the first frame alone, every other ``stream_block`` latent frames, and what the
layers remember passes from one to the next. A stream holds one block and that memory, however long the video. In large
pictures every tile has a memory of its own, and whole clips run through the same tiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from tokvid.errors import CheckpointError, ModelError, ShapeError
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.tiling import Tiling

if TYPE_CHECKING:
    from tokvid_tokenizers.codec import VideoCodec

_WAITING = "waiting"
_PAST = "past."


def blocks_of(clip: Tensor, block: int | None) -> Iterator[Tensor]:
    """Cut ``[B,C,T,H,W]`` along T as streams do: one, then ``block`` at a time, then the rest; all at once for None."""
    if block is None:
        yield clip
        return
    yield clip[:, :, :1]
    for start in range(1, clip.shape[2], block):
        yield clip[:, :, start : start + block]


class _Stream(ABC):
    """One clip under way: what waits for its block to be full, and what the layers remember."""

    def __init__(self, codec: VideoCodec, batch_size: int, block: int, tiling: Tiling, *, ahead: int = 0) -> None:
        codec.check_discrete()
        codec.check_causal("streams, and files of codes,")
        if batch_size < 1:
            raise ShapeError(f"batch_size must be at least 1, got {batch_size}")
        self._codec = codec
        self._batch_size = batch_size
        self._block = block
        self._ahead = ahead
        """How much more must wait before a block goes through, but for the first: what its end looks at."""
        self._tiling = tiling
        self._pasts: list[Past] = []
        """One a tile, from the first block on."""
        self._waiting: Tensor | None = None
        self._open = False
        self._finished = False

    def __enter__(self) -> Self:
        if self._finished:
            raise ModelError("this stream is finished: open another one")
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @torch.no_grad()
    def finish(self) -> Tensor:
        """What the pieces that still wait become, as :meth:`push` gives it; closes the stream.

        An encoder fills the last group by repeating the last frame, a decoder gives it whole: the caller trims it.
        """
        self._check_open()
        if self._waiting is None:
            raise ModelError("nothing was pushed into this stream")
        waiting, pasts = self._waiting, self._pasts
        self._close()
        for past in pasts:
            past.ends = True
        return self._tiling.run(self._run, waiting, pasts) if waiting.shape[2] else self._nothing(waiting)

    @abstractmethod
    def _run(self, block: Tensor, past: Past) -> Tensor:
        """What one block of a tile becomes."""

    @abstractmethod
    def _nothing(self, piece: Tensor) -> Tensor:
        """What :meth:`_run` would give of pieces like this one, with no time in it."""

    @torch.no_grad()
    def _pushed(self, piece: Tensor, *, what: str) -> Tensor:
        """What the blocks that ``piece`` ``[B,C,n,H,W]`` fills become; the rest waits."""
        if piece.shape[0] != self._batch_size:
            raise ShapeError(
                f"this stream was opened for batch_size={self._batch_size}, got {what} {list(piece.shape)}"
            )
        waiting = self._waiting
        if waiting is not None and piece.shape[3:] != waiting.shape[3:]:
            raise ShapeError(
                f"{what} of a stream keep their size: {list(waiting.shape[3:])}, got {list(piece.shape[3:])}"
            )
        # Pixels of large frames are the most that a stream holds: nothing is copied that need not be.
        joined = torch.cat([waiting, piece], dim=2) if waiting is not None and waiting.shape[2] else piece
        made: list[Tensor] = []
        try:
            while joined.shape[2] >= (self._block + self._ahead if self._pasts else 1):
                block = self._block if self._pasts else 1
                self._pasts = self._pasts or [Past() for _ in self._tiling.tiles(joined)]
                made.append(self._tiling.run(self._run, joined[:, :, :block], self._pasts))
                joined = joined[:, :, block:]
        except BaseException:
            # Some layers remember the block, others do not: nothing can go on from here.
            self._close()
            raise
        # A copy, so that what was pushed can go.
        self._waiting = joined.clone()
        return made[0] if len(made) == 1 else torch.cat(made or [self._nothing(piece)], dim=2)

    def _check_open(self) -> None:
        if not self._open:
            state = "is finished: open another one" if self._finished else "is not open: enter it with 'with'"
            raise ModelError(f"this stream {state}")

    def _close(self) -> None:
        self._open, self._finished = False, True
        self._waiting, self._pasts = None, []


class StreamEncoder(_Stream):
    """Frames in, codes out; see :meth:`VideoCodec.stream_encoder`."""

    def __init__(self, codec: VideoCodec, batch_size: int, tiling: Tiling) -> None:
        super().__init__(codec, batch_size, codec.config.stream_block * codec.temporal_stride, tiling)

    def push(self, frames: Tensor) -> Tensor:
        """Codes int64 ``[B,K,t',h,w]`` of the blocks that ``frames`` ``[B,3,T',H,W]`` in [-1, 1] fill; t' may be 0."""
        self._check_open()
        self._codec.check_frames(frames)
        return self._pushed(frames, what="frames")

    def state(self) -> dict[str, Tensor]:
        """Everything the rest of the stream depends on, for a file; empty before the first push."""
        if self._waiting is None:
            return {}
        state = {_WAITING: self._waiting}
        for prefix, past in zip(self._prefixes(self._waiting), self._pasts, strict=True):
            state |= {prefix + name: tensor for name, tensor in past.tensors(self._codec.encoder).items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave, in a stream just opened on the same codec with the same tiles."""
        self._check_open()
        if self._waiting is not None:
            raise ModelError("only a stream into which nothing was pushed can be restored")
        if state:
            device = next(self._codec.parameters()).device
            state = {name: tensor.to(device) for name, tensor in state.items()}
            try:
                waiting = state[_WAITING]
                self._pasts = self._pasts_in({name: state[name] for name in state if name != _WAITING}, waiting)
            except KeyError as error:
                raise CheckpointError(
                    f"this state is of another codec, of other tiles or no stream's: it lacks or adds {error}"
                ) from None
            self._waiting = waiting

    def _pasts_in(self, state: dict[str, Tensor], waiting: Tensor) -> list[Past]:
        """The past of every tile; KeyError for what is missing or of no tile."""
        pasts: list[dict[str, Tensor]] = []
        for prefix in self._prefixes(waiting):
            mine = [name for name in state if name.startswith(prefix)]
            pasts.append({name.removeprefix(prefix): state.pop(name) for name in mine})
            if unlike := pasts[0].keys() ^ pasts[-1].keys():
                raise KeyError(prefix + min(unlike))
        if state:
            raise KeyError(min(state))
        return [Past.of(self._codec.encoder, past) for past in pasts]

    def _prefixes(self, clip: Tensor) -> list[str]:
        """What the names of each tile's tensors begin with in a state."""
        if self._tiling.tile is None:
            return [_PAST]
        return [f"tile{number}.{_PAST}" for number in range(len(self._tiling.tiles(clip)))]

    def _run(self, block: Tensor, past: Past) -> Tensor:
        return self._codec.encode_block(block, past)

    def _nothing(self, piece: Tensor) -> Tensor:
        height, width = (side // self._codec.spatial_stride for side in piece.shape[-2:])
        shape = (self._batch_size, self._codec.num_codebooks, 0, height, width)
        return torch.empty(shape, dtype=torch.int64, device=piece.device)


class StreamDecoder(_Stream):
    """Codes in, frames out; see :meth:`VideoCodec.stream_decoder`."""

    def __init__(self, codec: VideoCodec, batch_size: int, tiling: Tiling) -> None:
        super().__init__(
            codec, batch_size, codec.config.stream_block, tiling, ahead=1 if codec.config.looks_ahead else 0
        )

    def push(self, codes: Tensor) -> Tensor:
        """Frames ``[B,3,T',H,W]`` in [-1, 1] of the blocks that ``codes`` ``[B,K,t',h,w]`` fill; T' may be 0.

        Of a codec that looks ahead a block's last frames come with the next one.
        """
        self._check_open()
        self._codec.check_codes(codes)
        return self._pushed(codes, what="codes")

    def _run(self, block: Tensor, past: Past) -> Tensor:
        return self._codec.decode_block(block, past)

    def _nothing(self, piece: Tensor) -> Tensor:
        height, width = (side * self._codec.spatial_stride for side in piece.shape[-2:])
        weight = next(self._codec.decoder.parameters())
        return torch.empty((self._batch_size, 3, 0, height, width), dtype=weight.dtype, device=weight.device)
