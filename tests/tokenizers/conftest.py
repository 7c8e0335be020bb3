"""What the tests of the codecs share; see :mod:`tests.tokenizers.lively` and :mod:`tests.tokenizers.tiny_run`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tokenizers.tiny_run import DATA, recipe
from tokvid import runtime
from tokvid.data.clips import ClipArray, materialise, open_clips
from tokvid_tokenizers.training import train_codec


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors here are so small that a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run fixes threads and determinism for its process; the tests after it keep what they had.

    One thread: with tensors this small a second one waits, and on a busy machine it waits long.
    """
    monkeypatch.setattr(runtime, "usable_cores", lambda: 1)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is handler
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def clips() -> tuple[ClipArray, ClipArray]:
    return materialise(open_clips(DATA, "train")), materialise(open_clips(DATA, "held_out"))


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, clips: tuple[ClipArray, ClipArray]) -> Path:
    """The output of a run that was never stopped."""
    output = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "usable_cores", lambda: 1)
        train_codec(recipe(output), *clips)
    return output
