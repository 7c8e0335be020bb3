"""Where else the numbers and pictures of a training go: tensorboard, and Weights & Biases where it is asked for.

Nothing depends on a board: where it cannot be written to, it says so once and the run goes on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PROJECT = "WANDB_PROJECT"
"""The environment's name of the project on Weights & Biases that runs are shown in; without one there are none."""


class Board(ABC):
    """Takes scalars and pictures of a step."""

    name: str

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._broken = False

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show ``values`` at ``step``."""
        self._try(lambda: self._scalars(values, step))

    def picture(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """Show a picture, uint8 [H,W,3], at ``step``."""
        self._try(lambda: self._picture(name, picture, step))

    def close(self) -> None:
        """Write what waits."""
        self._try(self._close)

    @abstractmethod
    def _scalars(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _picture(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _errors(self) -> tuple[type[Exception], ...]:
        return (OSError,)

    def _try(self, call: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            call()
        except self._errors() as error:
            self._broken = True
            said = getattr(error, "strerror", None) or " ".join(str(error).split())
            self._complain(f"{self.name} gets nothing more ({said}); log.jsonl goes on")


class TensorBoard(Board):
    """Files in ``folder``; those of steps from ``first_step`` on by an earlier run are no longer shown."""

    name = "tensorboard"

    def __init__(self, folder: Path, *, first_step: int, complain: Callable[[str], None]) -> None:
        super().__init__(complain)
        self._hook_before = threading.excepthook
        self._hook = self._without_the_writers_own
        threading.excepthook = self._hook
        self._writer: Any = None
        self._try(lambda: self._open(folder, first_step))

    def close(self) -> None:
        super().close()
        if threading.excepthook == self._hook:
            threading.excepthook = self._hook_before

    def _open(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=first_step)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _picture(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def _close(self) -> None:
        self._writer.close()

    def _without_the_writers_own(self, arguments: threading.ExceptHookArgs) -> None:
        """The writer is a thread that hands its error to the next call; the traceback it dies with says no more."""
        if type(arguments.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            self._hook_before(arguments)


class WeightsAndBiases(Board):
    """A run in the project that the environment names; the same run again when the folder's training is resumed."""

    name = "wandb"

    def __init__(self, folder: Path, *, complain: Callable[[str], None]) -> None:
        super().__init__(complain)
        self._run: Any = None
        self._try(lambda: self._open(folder))

    @staticmethod
    def wanted() -> bool:
        """Whether it is installed and the environment names a project."""
        return bool(os.environ.get(PROJECT)) and find_spec("wandb") is not None

    def _open(self, folder: Path) -> None:
        import wandb

        place = str(folder.resolve())
        self._run = wandb.init(
            project=os.environ[PROJECT],
            dir=str(folder),
            name=folder.name,
            id=hashlib.sha256(place.encode()).hexdigest()[:12],
            resume="allow",
        )

    def _errors(self) -> tuple[type[Exception], ...]:
        import wandb

        return (OSError, wandb.Error)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def _picture(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=step)

    def _close(self) -> None:
        self._run.finish()
