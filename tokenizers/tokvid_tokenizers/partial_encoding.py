"""What an encoding keeps beside its ``.tokvid`` file until it is whole, so that an interrupted one goes on.

``NAME.tokvid.parts`` holds the packed latent frames so far and the state of the encoder's stream after some of them;
what was written after the newest state is written again.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokvid.atomic import atomic_path
from tokvid.codes_file import CodesFacts, join_codes, pack, with_num_frames
from tokvid.config import to_mapping
from tokvid.errors import CheckpointError, DataError
from tokvid_tokenizers.streaming import StreamEncoder
from tokvid_tokenizers.tiling import Tiling

SUFFIX = ".parts"
_BODY, _STATE = "body.bin", "state.safetensors"


def parts_folder(target: str | os.PathLike[str]) -> Path:
    """Where the parts of ``target`` wait."""
    path = Path(target)
    return path.with_name(path.name + SUFFIX)


class PartialEncoding:
    """The parts of ``target``; ``facts`` are those of the whole, but for its length, which is not known yet."""

    def __init__(self, target: Path, facts: CodesFacts, source: Path, tiling: Tiling) -> None:
        self.target = target
        self.facts = facts
        self.folder = parts_folder(target)
        self.frames = 0
        """Pictures that went into the stream."""
        self._rows = 0
        stat = source.stat()
        # Nothing else must be joined to what is there: not another video, not another codec's codes.
        about = {"source": [source.name, stat.st_size, stat.st_mtime_ns], **to_mapping(facts), "made_by": None}
        if tiling.tile:
            about["tiles"] = [*tiling.tile, tiling.halo]
        self._identity = json.dumps(about, sort_keys=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        body = self.folder / _BODY
        self._body = body.open("r+b" if body.exists() else "w+b")

    def resume(self, stream: StreamEncoder) -> None:
        """Bring a stream just opened to where the newest state stands; without one, to the beginning."""
        path = self.folder / _STATE
        if path.exists():
            try:
                with safe_open(path, framework="pt") as file:
                    kept = file.metadata() or {}
                    state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is torn ({error}); remove {self.folder} to begin anew") from error
            if kept.get("identity") != self._identity:
                raise DataError(
                    f"{self.folder} is of another encoding (the video, the codec or a setting differs): repeat"
                    " that one, or remove the folder to begin anew"
                )
            stream.restore(state)
            self.frames, self._rows = int(kept["frames"]), int(kept["rows"])
        size = self._rows * self.facts.row_bytes
        if self._body.seek(0, os.SEEK_END) < size:
            raise CheckpointError(f"{self.folder / _BODY} is shorter than its state says; remove {self.folder}")
        self._body.truncate(size)
        self._body.seek(size)

    def append(self, codes: Tensor, frames: int) -> None:
        """Add the codes ``[1,K,t',h,w]`` that the stream gave for ``frames`` more pictures."""
        rows = pack(codes[0].cpu().numpy(), self.facts)
        self._body.write(rows.tobytes())
        self._rows += len(rows)
        self.frames += frames

    def keep(self, stream: StreamEncoder) -> None:
        """Write everything down that the rest depends on."""
        self._body.flush()
        os.fsync(self._body.fileno())
        kept = {"identity": self._identity, "frames": str(self.frames), "rows": str(self._rows)}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in stream.state().items()}
        with atomic_path(self.folder / _STATE) as beside:
            save_file(tensors, beside, metadata=kept)

    def join(self) -> CodesFacts:
        """Write the file and remove the parts; the facts of the whole."""
        self._body.close()
        facts = with_num_frames(self.facts, self.frames)
        join_codes(self.target, self.folder / _BODY, facts)
        shutil.rmtree(self.folder)
        return facts

    def close(self) -> None:
        """Let go of the files; what is there stays for the next time, unless there is nothing to go on from."""
        self._body.close()
        if self.folder.exists() and not (self.folder / _STATE).exists():
            shutil.rmtree(self.folder)
