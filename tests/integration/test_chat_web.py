"""The web chat: a page by itself, then all of it in a browser without a screen (Debian: chromium, chromium-driver).

TOKVID_SCREENSHOTS=FOLDER keeps pictures of the page, of a dialogue with the model TOKVID_CHAT_MODEL=FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.processes import environment
from tests.integration.web_chat import ASKED, SOME, WORDS, Visitor, broken, build, drawing_seed, hour, sound, sprite
from tokvid.cli.chat_web import build_app, open_server
from tokvid.errors import ModelError
from tokvid.video import probe_video
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.chat_files import load_conversation


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return build()


@pytest.fixture(scope="module")
def talker() -> VideoLM:
    """A model whose answers are text as long as they may be."""
    return build(ends=False, draws=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sprite(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def seed(lm: VideoLM, clip: Path) -> int:
    return drawing_seed(lm, clip)


def test_without_gradio_one_line_says_what_to_install(
    talker: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ModelError, match=r"needs gradio: pip install 'tokvid\[app\]'"):
        build_app(talker, name="tiny", folder=tmp_path)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def served(lm: VideoLM, **options: Any) -> Iterator[str]:
    """The page's address; ours asks no other machine for anything meanwhile."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'tokvid[app]'")
    connect, asked = socket.socket.connect, []

    def watched(self: socket.socket, address: Any) -> None:
        asked.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", watched)
        with open_server(
            lm, **{"name": "tiny", "port": free_port(), "text": SOME, "max_new_tokens": WORDS, **options}
        ) as url:
            yield url
    outside = [address for address in asked if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1")]
    assert outside == []


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_path_leaves_its_folder(talker: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx", reason="gradio is not installed: pip install 'tokvid[app]'")
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"hidden words")
    (tmp_path / ".gradio" / "cached_examples").mkdir(parents=True)
    (tmp_path / ".gradio" / "cached_examples" / "secret.txt").write_bytes(b"hidden words")
    monkeypatch.chdir(tmp_path)
    with served(talker) as url:
        up = "../" * 12
        for path in (
            str(secret),
            "secret.mp4",
            "/etc/passwd",
            f"{up}etc/passwd",
            urllib.parse.quote(f"{up}etc/passwd", safe=""),
            ".gradio/cached_examples/secret.txt",
        ):
            status, content = get(f"{url}gradio_api/file={path}")
            assert status in (403, 404) and b"hidden" not in content and b"root:" not in content, path
        with httpx.Client(base_url=url, trust_env=False) as client:
            sent = client.post("gradio_api/upload", files={"files": ("../../../evil.mp4", b"x", "video/mp4")})
            (stored,) = sent.json()
            folder = Path(stored).parents[1]
            sent = client.post("gradio_api/upload", files={"files": ("large.mp4", bytes(65 * 2**20), "video/mp4")})
            assert sent.status_code == 413
            assert Path(stored).is_relative_to(folder) and folder.name.startswith("tokvid-chat-")
            assert not list(folder.parent.glob("evil*"))
            # A file of this machine cannot be passed off as an upload.
            lines = converse(
                client, {"text": "look", "files": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]}
            )
            assert "secret.mp4" not in json.dumps(lines[-1].get("output", {}).get("data", [])), lines[-1]
            assert lines[-1]["success"] is False
            lines = converse(client, {"text": "half \ud800 letter", "files": []})
            assert "no UTF-8 text" in json.dumps(lines), lines
            lines = converse(client, {"text": "hello", "files": []}, seed=-1)  # a page that took it would hang
            assert "a seed is a number from 0 to" in json.dumps(lines), lines
    assert not folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gradio", "secret.mp4"]


def converse(client: Any, message: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Open the page and say something, as the browser does; what comes back of the message itself."""
    config = client.get("config").json()
    state, codes = (part(config, kind) for kind in ("state", "checkbox"))
    assert state is not None and codes is not None
    loads, asks = (
        next(call for call in config["dependencies"] if any(kind == target[1] for target in call["targets"]))
        for kind in ("load", "submit")
    )
    session = {"session_hash": f"s{time.monotonic_ns()}"}
    for call, data in ((loads, []), (asks, [None, True, message, 0, "frame", 2, 1.0, seed])):
        body = {"data": data, "fn_index": call["id"], "trigger_id": None, "event_data": None, **session}
        reply = client.post(
            "gradio_api/run/predict", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        said: dict[str, Any] = reply.json()
    return [{"success": reply.status_code == 200, "output": said}]


def part(config: dict[str, Any], kind: str) -> Any:
    return next((component for component in config["components"] if component["type"] == kind), None)


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Callable[..., Visitor]]:
    """Opens browsers, and closes them."""
    opened: list[Visitor] = []

    def open_one(url: str, **options: Any) -> Visitor:
        opened.append(Visitor(url, tmp_path / "downloads", **options))
        return opened[-1]

    yield open_one
    for visitor in opened:
        visitor.driver.quit()


@pytest.mark.slow
def test_a_dialogue(lm: VideoLM, clip: Path, seed: int, tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    with served(lm, mode="frame", seed=seed) as url:
        visitor = visit(url)
        visitor.say(ASKED, clip)
        assert ASKED in visitor.text  # what looks like markup is text
        visitor.until(lambda: len(visitor.videos()) >= 2 and all(v["ready"] >= 2 for v in visitor.videos()))
        shown, drawn = visitor.videos()[:2]
        for video in (shown, drawn):
            assert (video["width"], video["height"], video["error"]) == (32, 32, None)
            assert video["s"] == pytest.approx(9 / 8, abs=0.1)
        visitor.until(lambda: visitor.videos()[1]["at"] > 0.7)  # it plays
        visitor.until(lambda: 0 < visitor.videos()[1]["at"] < 0.4)  # and again
        grids = len(visitor.all("#conversation img"))
        assert grids == len(visitor.videos())
        visitor.one("#codes input").click()
        visitor.until(lambda: not visitor.all("#conversation img"))
        assert len(visitor.videos()) == grids
        visitor.say("and again")
        assert visitor.text.count("and again") == 1
        assert not any(button.is_displayed() for button in visitor.all("#conversation [aria-label=Share]"))

        visitor.press("retry")
        visitor.until(lambda: visitor.one("#seed input").get_attribute("value") == str(seed + 1) and not visitor.busy)
        visitor.press("save")
        zips = tmp_path / "downloads"
        visitor.until(lambda: list(zips.glob("*.zip")))
        with zipfile.ZipFile(next(zips.glob("*.zip"))) as archive:
            archive.extractall(tmp_path / "saved")
        turns = load_conversation(lm, tmp_path / "saved" / "conversation")
        assert [turn.role for turn in turns] == ["user", "assistant"] * 2
        assert turns[0].segments[1] == TextSegment(ASKED)
        (made, *_) = sorted((tmp_path / "saved" / "videos").glob("clip-*.mp4"))
        assert json.loads(probe_video(made).metadata["tokvid"])["sampling"]["seed"] == seed
        assert any(isinstance(segment, VideoSegment) for segment in turns[1].segments)

        visitor.press("clear")
        visitor.until(lambda: "and again" not in visitor.text and not visitor.videos())
        visitor.say("hello")
        foreign = {at for at in visitor.requests() if not at.startswith((url, "data:", "blob:"))}
        assert foreign == set()
        assert visitor.complaints() == []


@pytest.mark.slow
def test_settings_are_the_page_s(lm: VideoLM, visit: Callable[..., Visitor]) -> None:
    with served(lm) as url:
        visitor = visit(url)
        assert visitor.one("#mode input").get_attribute("value") == "next_token"
        steps = visitor.one("#steps input")
        assert not steps.is_enabled()
        visitor.one("#mode input").click()
        visitor.until(lambda: len(visitor.all("#mode [role=option]")) == 3)
        (maskgit,) = [option for option in visitor.all("#mode [role=option]") if option.text.endswith("maskgit")]
        maskgit.click()
        visitor.until(lambda: visitor.one("#steps input").is_enabled())
        assert visitor.one("#steps input").get_attribute("value") == "3"
        visitor.say("hello")


@pytest.mark.slow
def test_bad_input_is_one_line_and_the_conversation_survives(
    talker: VideoLM, tmp_path: Path, visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokvid.cli.chat_web.MOST_MEGABYTES", 1)
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2 * 2**20))
    with served(talker) as url:
        visitor = visit(url)
        visitor.say("hello")
        visitor.attach(large)
        visitor.until(lambda: visitor.toasts)
        assert 'exceed the maximum allowed size of 1.0 Mb: "large.mp4"' in visitor.toasts
        for path, words in [(broken(tmp_path), "broken.mp4"), (sound(tmp_path), "sound.mp4")]:
            visitor.say("look", path)
            assert words in visitor.text and str(tmp_path) not in visitor.text
        visitor.say("", hour(tmp_path))
        assert "of 3600.0 s the model reads 1.1 s from 0 s on" in visitor.text
        visitor.type("a line of ten thousand\n" * 10_000)
        visitor.send()
        visitor.until(lambda: "this one has 230,000 in 10,001 lines" in visitor.text)
        visitor.type("")
        visitor.say("and now?")
        assert "Traceback" not in visitor.text and "Error" not in visitor.text


@pytest.mark.slow
def test_two_visitors_at_once(talker: VideoLM, visit: Callable[..., Visitor]) -> None:
    # An answer that lasts until it is cancelled, however slow the browsers are meanwhile.
    with served(talker, max_new_tokens=100_000) as url:
        one, two = visit(url), visit(url)
        one.type("i am one")
        one.send()
        one.until(lambda: one.answers())
        early = one.text
        two.type("i am two")
        two.send()
        two.until(lambda: "waiting for 1 other answer" in two.one("#status").text and two.busy)
        one.until(lambda: len(one.text) > len(early))  # it streams, and the other waits
        assert not two.answers()
        # A second message of the same visitor is not taken.
        one.type("and more")
        one.send()
        one.until(lambda: "one answer at a time" in one.one("#notice").text)
        one.press("cancel")
        one.until(lambda: "cancelled: what was said until then stays" in one.text and not one.busy)
        two.until(lambda: two.answers())
        assert "i am two" not in one.text and "i am one" not in two.text
        # While the second's answer is under way, the first waits, and changes its mind.
        one.send()
        one.until(lambda: "waiting for 1 other answer" in one.one("#status").text)
        one.press("cancel")
        one.until(lambda: "cancelled before it was answered" in one.text and not one.busy)
        two.press("cancel")
        two.until(lambda: "cancelled: what was said" in two.text and not two.busy)


@pytest.mark.slow
def test_a_visitor_who_leaves_does_not_keep_others_waiting(talker: VideoLM, visit: Callable[..., Visitor]) -> None:
    with served(talker, max_new_tokens=4000) as url:
        one, two = visit(url), visit(url)
        one.type("i am one")
        one.send()
        one.until(lambda: one.answers())
        one.driver.get("about:blank")
        two.type("i am two")
        two.send()
        two.until(two.answers)
        two.press("cancel")


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(lm: VideoLM, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'tokvid[app]'")
    lm.save_pretrained(tmp_path / "model")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "tokvid", "chat", str(tmp_path / "model"), "--web", "--port", str(port)]
    # A proxy that is down: nobody may need it.
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    variables = {**environment(), **proxy, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [*command, "--host", "0.0.0.0"],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith(f"http://0.0.0.0:{port}/")
            assert get(f"http://127.0.0.1:{port}/")[0] == 200
            assert [path.name[:12] for path in temporary.iterdir()] == ["tokvid-chat-"]
            taken = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
            assert taken.returncode == 2 and f"port {port} of 127.0.0.1 cannot be had" in taken.stderr
            assert len(taken.stderr.strip().splitlines()) == 1
            server.send_signal(signal.SIGTERM)
            rest, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (server.returncode, rest) == (0, "")
    assert errors.startswith(f"warning: whoever reaches port {port} of 0.0.0.0") and len(errors.splitlines()) == 1
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "temporary"]


@pytest.mark.slow
def test_screenshots(lm: VideoLM, clip: Path, seed: int, tmp_path: Path, visit: Callable[..., Visitor]) -> None:
    """Pictures for the documentation, of what a person sees."""
    if "TOKVID_SCREENSHOTS" not in os.environ:
        pytest.skip("pictures are taken with TOKVID_SCREENSHOTS=FOLDER")
    folder = Path(os.environ["TOKVID_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    model = os.environ.get("TOKVID_CHAT_MODEL")
    options: dict[str, Any] = {"seed": seed, "mode": "frame"}
    if model is not None:
        lm = VideoLM.from_pretrained(model)
        options = {"name": Path(model).name, "text": None, "max_new_tokens": 64}
        clip = sprite(tmp_path, lm.settings.num_frames or 9)
    with served(lm, **options) as url:
        visitor = visit(url, size=(1280, 1690))
        visitor.say("make a clip in which a fox moves left over grass")
        visitor.say("make it move right")
        take(visitor, folder / "chat-web.png")
        visitor.press("clear")
        visitor.until(lambda: not visitor.videos())
        visitor.driver.set_window_size(1280, 1220)
        visitor.say("what happens here?", clip)
        visitor.say("and here?", broken(tmp_path))
        visitor.type("a line of ten thousand\n" * 10_000)
        visitor.send()
        visitor.until(lambda: "10,001 lines" in visitor.text)
        visitor.type("")
        take(visitor, folder / "chat-web-files.png")


def take(visitor: Visitor, path: Path) -> None:
    """A picture that a repository can hold."""
    time.sleep(1.5)
    visitor.driver.save_screenshot(str(path))
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < 200_000
