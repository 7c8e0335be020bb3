"""A saved codec is the same codec; a folder that is damaged or foreign says so in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tokenizers.lively import SMALLEST, noise, smallest_codec
from tokvid.errors import CheckpointError, ConfigError, ModelError, TokvidError
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.codec_folder import CONFIG_FILE, WEIGHTS_FILE

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "codec-format-1"
FRAMES = noise(2, 3, 6, 16, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    smallest_codec().save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def test_a_saved_codec_comes_back_the_same(folder: Path) -> None:
    codec = smallest_codec()
    for loaded in (load_codec(folder), load_codec(str(folder)), VideoCodec.from_pretrained(folder)):
        assert not loaded.training
        assert loaded.config == codec.config
        assert loaded.codec_id == codec.codec_id
        codes = codec.encode(FRAMES)
        assert torch.equal(loaded.encode(FRAMES), codes)
        assert torch.equal(loaded.decode(codes, num_frames=6), codec.decode(codes, num_frames=6))
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_again_replaces(folder: Path) -> None:
    (folder / "model.safetensors.tmp").write_bytes(b"what a crash left")
    smallest_codec(seed=1).save_pretrained(folder)
    assert load_codec(folder).codec_id == smallest_codec(seed=1).codec_id
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert [path.name for path in folder.parent.iterdir()] == ["codec"]


def test_a_save_that_fails_leaves_the_earlier_codec_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the weights of one codec beside the configuration of another, wherever it is stopped."""
    other = smallest_codec(config=dataclasses.replace(SMALLEST, temporal_stride=2))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(mapping: object, **settings: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tokvid_tokenizers.codec.json.dumps", full)
        with pytest.raises(OSError, match="No space"):
            other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load_codec(folder).codec_id == smallest_codec().codec_id


@pytest.mark.parametrize("name", ["thesis.txt", "tokenizer.json"])
def test_a_folder_with_more_in_it_is_left_alone(folder: Path, name: str) -> None:
    (folder / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"{name}.*choose another folder"):
        smallest_codec(seed=1).save_pretrained(folder)
    assert (folder / name).read_text() == "mine"
    assert load_codec(folder).codec_id == smallest_codec().codec_id
    with pytest.raises(CheckpointError, match="is a file"):
        smallest_codec().save_pretrained(folder / name)


def test_a_codec_saved_long_ago_keeps_its_id() -> None:
    """Language models store the id of the codec whose codes they speak: with another id they no longer load.

    The folder was written before ``local_encoder`` was a setting. A field that is added to the configuration of a
    codec or a quantizer must be marked with ``metadata=ADDED_LATER``, and its default must be what codecs did without.
    """
    assert load_codec(GOLDEN).codec_id == "tokvid-53d856f7121befac"


def test_a_setting_that_was_added_later_counts_when_it_is_used() -> None:
    local = smallest_codec()
    local.config = dataclasses.replace(SMALLEST, local_encoder=True)
    assert local.codec_id != smallest_codec().codec_id


def test_the_folder_is_the_same_bytes_whatever_the_memory_order(folder: Path, tmp_path: Path) -> None:
    smallest_codec().to(memory_format=torch.contiguous_format).save_pretrained(tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_id_changes_with_any_weight() -> None:
    codec = smallest_codec()
    seen = {codec.codec_id}
    assert codec.codec_id == smallest_codec().codec_id
    assert codec.codec_id.startswith("tokvid-") and len(codec.codec_id) == len("tokvid-") + 16
    names = []
    for name, parameter in codec.named_parameters():
        flat = parameter.data.view(-1) if parameter.is_contiguous() else parameter.data.permute(0, 2, 3, 1).view(-1)
        before = flat[-1].clone()
        flat[-1] = torch.nextafter(before, torch.tensor(9.0))
        seen.add(codec.codec_id)
        flat[-1] = before
        names.append(name)
    assert len(seen) == 1 + len(names) and len(names) > 10
    assert codec.codec_id == smallest_codec().codec_id


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def configure(folder: Path, **changes: object) -> None:
    data = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (folder / CONFIG_FILE).write_text(json.dumps(data | changes), encoding="utf-8")


def truncate(folder: Path, size: int) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:size])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda f: edit(f, lambda t: t.pop("encoder.head.bias")), CheckpointError, "1 missing .*encoder.head.bias"),
        (lambda f: edit(f, lambda t: t.update(odd=torch.zeros(1))), CheckpointError, r"1 unknown \(first: odd\)"),
        (
            lambda f: edit(f, lambda t: t.update({"encoder.head.bias": torch.zeros(9)})),
            CheckpointError,
            "another shape .*encoder.head.bias",
        ),
        (
            lambda f: edit(f, lambda t: t.update({"encoder.head.bias": torch.zeros(3, dtype=torch.int64)})),
            CheckpointError,
            "another type .*encoder.head.bias",
        ),
        (lambda f: edit(f, lambda t: t["encoder.head.bias"].fill_(torch.nan)), CheckpointError, "head.bias' holds NaN"),
        (lambda f: edit(f, lambda t: t["encoder.head.bias"].fill_(torch.inf)), CheckpointError, "head.bias' holds NaN"),
        (lambda f: replace_by_folder(f / WEIGHTS_FILE), CheckpointError, "torn"),
        (lambda f: (f / WEIGHTS_FILE).write_text("<html>not found</html>"), CheckpointError, "torn"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes(b"\xff" * 99), CheckpointError, "torn"),
        (
            lambda f: (f / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1"),
            CheckpointError,
            "torn",
        ),
        (lambda f: truncate(f, -1), CheckpointError, "torn"),
        (lambda f: truncate(f, 2000), CheckpointError, "torn"),
        (lambda f: truncate(f, 5), CheckpointError, "torn"),
        (lambda f: truncate(f, 0), CheckpointError, "torn"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), CheckpointError, "model.safetensors is missing"),
        (lambda f: (f / CONFIG_FILE).write_text("{"), CheckpointError, "not JSON"),
        (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff\xfe"), CheckpointError, "not JSON"),
        (lambda f: (f / CONFIG_FILE).write_text("[]"), CheckpointError, "holds list where a mapping belongs"),
        (lambda f: configure(f, channel=[8]), ConfigError, "'.*channel'.*did you mean 'channels'"),
        (lambda f: configure(f, channels=[16]), CheckpointError, "another shape"),
        (lambda f: configure(f, format_version=2), ConfigError, "reads codec format 1, got 2; update tokvid"),
        # A newer format has keys that this version does not know: the version is what must be named.
        (lambda f: configure(f, format_version=2, streams=4), ConfigError, "codec format 1, got 2; update tokvid"),
        (lambda f: (f / CONFIG_FILE).unlink(), ModelError, "give a folder with a config.json"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(
    folder: Path, damage: Callable[[Path], object], kind: type[TokvidError], words: str
) -> None:
    damage(folder)
    with pytest.raises(kind, match=words) as caught:
        load_codec(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_configuration_is_no_codec(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        VideoCodec.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="preset:base"):
        load_codec(tmp_path / "nowhere")
