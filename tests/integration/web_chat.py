"""What the tests of the web chat share: tiny models that talk, files good and bad, and a browser without a screen."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.lm.tiny import build_model, build_tokenizer
from tokvid import Video, write_video
from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.chat import Chat, Said, Shown
from tokvid_lm.chat_files import read_clip
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import END_OF_TURN, MODES
from tokvid_tokenizers import load_codec

SOME = Sampling(top_k=6)
ASKED = "make a <b>clip</b> & say more"
WORDS = 16
PATIENCE_S = 180


def build(*, ends: bool = True, draws: bool = True, chat: bool = True) -> VideoLM:
    """A tiny model that says letters, and often draws a video and ends its turn, or never does."""
    model = build_model("llama", max_position_embeddings=4096)
    lm = VideoLM.extend(model, codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), chat=chat)
    lm.settings = VideoSettings(
        sampling=tuple(Sampling(mode=mode, steps=3) for mode in MODES), num_frames=9, height=32, width=32, fps=8.0
    )
    head = lm.model.get_output_embeddings().weight
    letters = {token for letter in "abcdefghijklmnopqrstuvwxyz" for token in lm.processor.encode_text(letter)}
    with torch.no_grad():
        head[[token for token in range(lm.vocabulary.text_size) if token not in letters]] = 0
        head[lm.vocabulary.open_id] *= 4 if draws else 0
        if chat:
            head[lm.vocabulary.special[END_OF_TURN]] *= 2 if ends else 0
    return lm


def sprite(folder: Path, frames: int = 9) -> Path:
    """A clip of a sprite."""
    path = folder / "a sprite.mp4"
    world = SpriteWorld(SpriteWorldConfig(size=(32, 32), num_frames=frames))
    write_video(path, Video(frames=world.clip(3, split="train").frames, fps=8.0))
    return path


def drawing_seed(lm: VideoLM, clip: Path) -> int:
    """With which the model answers the clip and :data:`ASKED` in text and then a video."""
    for number in range(300):
        chat = Chat(lm, mode="frame", seed=number, text=SOME, max_new_tokens=WORDS)
        events = chat.say([read_clip(lm, clip).segment, TextSegment(ASKED)])
        kinds = [type(event) for event in events]
        if Shown in kinds and Said in kinds[: kinds.index(Shown)]:
            return number
    raise AssertionError("no seed of 300 draws a video")


def broken(folder: Path) -> Path:
    path = folder / "broken.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def sound(folder: Path) -> Path:
    """A file with sound alone."""
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def hour(folder: Path) -> Path:
    """An hour of almost nothing, one picture a second."""
    path = folder / "hour.mp4"
    write_video(path, Video(frames=np.zeros((3600, 16, 16, 3), np.uint8), fps=1.0))
    return path


class Visitor:
    """A browser at the page."""

    def __init__(self, url: str, downloads: Path, size: tuple[int, int] = (1280, 980)) -> None:
        reason = "{} is not installed (Debian: chromium, chromium-driver; pip install selenium)"
        pytest.importorskip("selenium", reason=reason.format("selenium"))
        from selenium import webdriver

        browser = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if browser is None or driver is None:
            pytest.skip(reason.format("chromium or its driver"))
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--autoplay-policy=no-user-gesture-required",
            "--force-color-profile=srgb",
            f"--window-size={size[0]},{size[1]}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.url = url
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.get(url)
        self.until(lambda: self.all("#box textarea:enabled") and self.all("#box .submit-button"))

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        self.until(lambda: self.all(selector))
        return self.all(selector)[0]

    def until(self, true: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Wait; elements that are replaced meanwhile are asked for anew."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            try:
                if true():
                    return
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < end, (
                f"{self.text!r} {self.one('#status').text!r} {self.one('#notice').text!r} {self.toasts!r}"
            )
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return str(self.one("#conversation").text)

    @property
    def toasts(self) -> str:
        return " ".join(toast.text for toast in self.all(".toast-body"))

    @property
    def busy(self) -> bool:
        return bool(self.one("#cancel").is_enabled())

    def attach(self, *paths: Path) -> None:
        chosen = self.one("#box input[type=file]")
        self.driver.execute_script("arguments[0].value = ''", chosen)  # else these are added to what it had
        chosen.send_keys("\n".join(map(str, paths)))

    def attached(self) -> int:
        return len(self.all("#box .thumbnail-item"))

    def type(self, text: str) -> None:
        """As pasted: key by key would take minutes for long texts."""
        script = (
            "const box = arguments[0];"
            "Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, arguments[1]);"
            "box.dispatchEvent(new Event('input', {bubbles: true}));"
        )
        self.driver.execute_script(script, self.one("#box textarea"), text)

    def send(self) -> None:
        self.one("#box .submit-button").click()

    def say(self, text: str, *paths: Path) -> None:
        """Say something and wait for the whole answer."""
        if paths:
            self.attach(*paths)
            self.until(lambda: self.attached() == len(paths))
        before = self.answers()
        self.type(text)
        self.send()
        self.until(lambda: self.answers() > before and not self.busy)

    def answers(self) -> int:
        return len(self.all("#conversation .bot-row"))

    def press(self, button: str) -> None:
        self.until(lambda: self.one(f"#{button}").is_enabled())
        self.one(f"#{button}").click()

    def videos(self) -> list[dict[str, Any]]:
        """What the browser knows of the videos in the conversation."""
        script = (
            "return [...document.querySelectorAll('#conversation video')].map(v => ({width: v.videoWidth,"
            " height: v.videoHeight, s: v.duration, at: v.currentTime, ready: v.readyState,"
            " error: v.error && v.error.message}))"
        )
        found: list[dict[str, Any]] = self.driver.execute_script(script)
        return found

    def requests(self) -> set[str]:
        """The addresses that the browser has asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
