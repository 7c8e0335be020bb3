"""The chat as a page for the browser: a Gradio application around :class:`~tokvid.cli.chat_web_page.Page`.

It listens on this machine alone unless told otherwise, asks no other machine for anything, and gives out no file but
those of its own folder, which is gone when the server ends. What is said and drawn is the page's affair.
"""

from __future__ import annotations

import html
import ipaddress
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.chat_web_page import CLIP_SUFFIXES, MOST_CHARACTERS, MOST_SEED, ChatHost, Drawing, Page
from tokvid.errors import DataError, ModelError, TokvidError
from tokvid.interruption import deferred_interrupt

if TYPE_CHECKING:
    from tokvid_lm import VideoLM
    from tokvid_lm.samplers.sampling import Sampling

MOST_MEGABYTES = 64  # of an upload
_VISITORS = 64  # whose conversations, with what the model has read of them, are kept
_WAITING = 32  # answers that may wait for their turn
_KEPT_S = 24 * 3600  # files of conversations that are still open
_NO_PAGE = "this conversation is not kept any more: load the page anew"
_STYLE = """
footer { display: none !important; }
#conversation video, #conversation img { width: 256px; max-width: 100%; image-rendering: pixelated; }
#status { min-height: 1.6em; }
"""
# Clips last a second or two: they play over and over. What the browser forbids it does not play, and nothing breaks.
_LOOP = """
() => {
  const loop = (video) => { video.loop = true; video.muted = true; video.play().catch(() => {}); };
  new MutationObserver(() => {
    for (const video of document.querySelectorAll("#conversation video:not([loop])")) loop(video);
  }).observe(document.body, {childList: true, subtree: true});
}
"""
_SAVE_FILE = "() => setTimeout(() => document.querySelector('#conversation-file')?.click(), 300)"


def serve(
    lm: VideoLM,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    mode: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
    open_browser: bool = False,
) -> int:
    """Serve the page until Ctrl-C or SIGTERM. Raises :class:`DataError` for an address that cannot be had."""
    if not _is_loopback(host):
        print(
            f"warning: whoever reaches port {port} of {host} can talk with this model; nobody is asked for a password",
            file=sys.stderr,
        )
    options: dict[str, Any] = {"name": name, "mode": mode, "seed": seed, "max_new_tokens": max_new_tokens}
    with (
        deferred_interrupt() as came,
        open_server(lm, host=host, port=port, open_browser=open_browser, **options) as at,
    ):
        print(f"{at} (Ctrl-C ends it)", flush=True)
        while not came():
            time.sleep(0.2)
    return 0


@contextmanager
def open_server(
    lm: VideoLM, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False, **options: Any
) -> Iterator[str]:
    """Serve inside the block and give the address; ``options`` are those of :func:`build_app`."""
    gradio = _gradio()
    with tempfile.TemporaryDirectory(prefix="tokvid-chat-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with _environment(folder, host):
            app = build_app(lm, folder=folder, **options)
            try:
                app.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
                    inbrowser=open_browser,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=False,
                    max_file_size=f"{MOST_MEGABYTES}mb",
                    allowed_paths=[str(folder)],
                    state_session_capacity=_VISITORS,
                    ssr_mode=False,
                    pwa=False,
                    mcp_server=False,
                    enable_monitoring=False,
                    run_history=False,
                    footer_links=[],
                    theme=_theme(gradio),
                    css=_STYLE,
                    js=_LOOP,
                )
            except OSError as error:
                raise DataError(
                    f"port {port} of {host} cannot be had ({error}): give another with --port, or another --host"
                ) from error
            try:
                yield f"http://{f'[{host}]' if ':' in host else host}:{port}/"
            finally:
                app.close(verbose=False)


def build_app(
    lm: VideoLM,
    *,
    name: str,
    folder: Path,
    mode: str | None = None,
    seed: int = 0,
    text: Sampling | None = None,
    max_new_tokens: int = 256,
) -> Any:
    """The page as a ``gradio.Blocks`` that is not served yet; ``text`` is how words are chosen, ``folder`` for files.

    Raises :class:`ModelError` for a model that was not trained to talk, for an unknown mode, and without Gradio.
    """
    gradio = _gradio()
    host = ChatHost(lm, name=name, folder=folder, mode=mode, seed=seed, text=text, max_new_tokens=max_new_tokens)
    with gradio.Blocks(title=f"tokvid chat: {name}", analytics_enabled=False, delete_cache=(3600, _KEPT_S)) as app:
        _Layout(gradio, host, mode, seed).connect(app)
    app.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    return app


class _Layout:
    """The components of the page, and what happens when one is used."""

    def __init__(self, gradio: Any, host: ChatHost, mode: str | None, seed: int) -> None:
        self._gradio = gradio
        self._host = host
        self.page = gradio.State(None)
        gradio.Markdown(f"### {html.escape(host.name)}: text and video")
        with gradio.Row():
            with gradio.Column(scale=4):
                self.conversation = gradio.Chatbot(
                    elem_id="conversation",
                    show_label=False,
                    height="62vh",
                    render_markdown=False,
                    allow_tags=False,
                    buttons=[],
                    feedback_options=None,
                    placeholder="Say something, or attach a video.",
                )
                self.status = gradio.HTML("", elem_id="status")
                self.box = gradio.MultimodalTextbox(
                    elem_id="box",
                    show_label=False,
                    placeholder=f"a message of at most {MOST_CHARACTERS:,} characters, and clips",
                    file_count="multiple",
                    file_types=list(CLIP_SUFFIXES),
                    max_plain_text_length=2**31 - 1,  # else a long text becomes a file
                )
                with gradio.Row():
                    self.cancel = gradio.Button("Cancel", elem_id="cancel", variant="stop", interactive=False)
                    self.retry = gradio.Button("Retry", elem_id="retry")
                    self.clear = gradio.Button("Clear", elem_id="clear")
                    self.save = gradio.Button("Download", elem_id="save")
                    self.file = gradio.DownloadButton("file", elem_id="conversation-file", visible="hidden")
            with gradio.Column(scale=1, min_width=240):
                self._add_settings(mode, seed)

    def _add_settings(self, mode: str | None, seed: int) -> None:
        gradio, known = self._gradio, self._host.lm.settings.sampling
        chosen = None if not known else self._host.lm.sampling_for(mode)
        self.mode = gradio.Dropdown(
            [sampling.mode for sampling in known],
            value=None if chosen is None else chosen.mode,
            label="how videos are drawn",
            elem_id="mode",
            visible=bool(known),
            filterable=False,
        )
        self.steps = gradio.Slider(1, 64, step=1, elem_id="steps", **_steps(chosen))
        self.guidance = gradio.Slider(
            1.0,
            10.0,
            value=1.0 if chosen is None else chosen.guidance_scale,
            step=0.1,
            label="guidance (1 is off)",
            elem_id="guidance",
            visible=bool(known) and self._host.lm.settings.knows_null_prompt,
        )
        self.seed = gradio.Number(
            value=seed, precision=0, minimum=0, maximum=MOST_SEED, label="seed (Retry takes the next)", elem_id="seed"
        )
        self.start = gradio.Number(value=0, minimum=0, label="read attached videos from (s)", elem_id="start")
        self.codes = gradio.Checkbox(value=True, label="show codes: a grid a latent frame", elem_id="codes")
        gradio.Markdown(f"{_what_is_read(self._host)} Files of at most {MOST_MEGABYTES} MB.")

    def connect(self, app: Any) -> None:
        """Say what happens when something is used. Whatever needs the model waits in one queue."""
        view = [self.conversation, self.status, self.cancel, self.retry, self.clear]
        settings = [self.mode, self.steps, self.guidance, self.seed]
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        in_turn: dict[str, Any] = {
            **at_once,
            "queue": True,
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "trigger_mode": "multiple",
        }
        follow: dict[str, Any] = {
            "fn": self._answer,
            "inputs": [self.page, self.codes, *settings],
            "outputs": [*view, self.seed],
        }
        app.load(self._open, None, [self.page, *view], **at_once)
        said = self.box.submit(self._ask, [self.page, self.codes, self.box, self.start], [*view, self.box], **at_once)
        said.then(**follow, **in_turn)
        again = self.retry.click(self._ask_again, [self.page, self.codes], view, **at_once)
        again.then(**follow, **in_turn)
        self.cancel.click(self._cancel, [self.page, self.codes], view, **at_once)
        self.clear.click(self._clear, [self.page, self.codes], view, **at_once)
        self.codes.change(self._view, [self.page, self.codes], view, **at_once)
        self.mode.change(self._mode, self.mode, [self.steps, self.guidance], **at_once)
        ready = self.save.click(self._save, self.page, self.file, **at_once)
        ready.success(None, None, None, js=_SAVE_FILE, **at_once)

    def _open(self) -> tuple[Any, ...]:
        page = self._host.open_page()
        return (page, *self._view(page, True))

    def _ask(self, page: Page | None, codes: bool, message: dict[str, Any] | None, start: float | None) -> Any:
        message = message or {}
        box: Any = self._gradio.skip()
        with self._told():
            files = message.get("files") or []
            taken = self._kept(page).ask(message.get("text") or "", files, start or 0.0)
            if taken or files:
                box = {"text": "", "files": []}
        return (*self._view(page, codes), box)

    def _ask_again(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        with self._told():
            self._kept(page).ask_again()
        return self._view(page, codes)

    def _answer(
        self,
        page: Page | None,
        codes: bool,
        mode: str | None,
        steps: float | None,
        guidance: float | None,
        seed: float | None,
    ) -> Iterator[tuple[Any, ...]]:
        if page is None or not page.busy:
            yield (*self._view(page, codes), self._gradio.skip())
            return
        for _ in page.answer(self._drawing(mode, steps, guidance, seed)):
            yield (*self._view(page, codes), self._gradio.skip())
        yield (*self._view(page, codes), page.chat.seed)

    def _drawing(self, mode: str | None, steps: float | None, guidance: float | None, seed: float | None) -> Drawing:
        """What was chosen; None for what is as the model was evaluated, which may be more than one number says."""
        number = None if seed is None else int(seed)
        own = next((sampling for sampling in self._host.lm.settings.sampling if sampling.mode == mode), None)
        if own is None:
            return Drawing(seed=number)
        is_masked = own.mode != "next_token"
        return Drawing(
            mode=mode,
            steps=None if steps is None or not is_masked or steps == own.steps else int(steps),
            guidance=None if guidance == own.guidance_scale else guidance,
            seed=number,
        )

    def _cancel(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        with self._told():
            self._kept(page).cancel()
        return self._view(page, codes)

    def _clear(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        with self._told():
            self._kept(page).clear()
        return self._view(page, codes)

    def _mode(self, mode: str) -> tuple[Any, ...]:
        chosen = self._host.lm.sampling_for(mode)
        return self._gradio.update(**_steps(chosen)), chosen.guidance_scale

    def _save(self, page: Page | None) -> str:
        try:
            return str(self._kept(page).save())
        except TokvidError as error:
            raise self._gradio.Error(html.escape(str(error)), print_exception=False) from error

    def _view(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        """The conversation, the line below it, and whether it can be cancelled, tried again and cleared."""
        if page is None:
            return tuple(self._gradio.skip() for _ in range(5))
        button, busy = self._gradio.update, page.busy
        messages = [
            {
                "role": message.role,
                "content": {"path": str(message.content)}
                if isinstance(message.content, Path)
                else f"\u26a0 {message.content}"
                if message.kind == "note"
                else message.content,
            }
            for message in page.messages(codes=codes)
        ]
        free = not busy
        return (
            messages,
            html.escape(page.status),
            button(interactive=busy),
            button(interactive=free),
            button(interactive=free),
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be done now is said in a corner of the page."""
        try:
            yield
        except TokvidError as error:
            self._gradio.Warning(html.escape(str(error)))

    def _kept(self, page: Page | None) -> Page:
        if page is None:
            raise DataError(_NO_PAGE)
        return page


def _steps(chosen: Sampling | None) -> dict[str, Any]:
    """The slider of the steps, for the masked modes alone."""
    is_masked = chosen is not None and chosen.mode != "next_token"
    return {
        "value": 12 if chosen is None else chosen.steps,
        "label": "steps" if is_masked else "steps (of the masked modes)",
        "interactive": is_masked,
        "visible": chosen is not None,
    }


def _what_is_read(host: ChatHost) -> str:
    settings = host.lm.settings
    if settings.num_frames is None or settings.fps is None:
        return "Of a long video a window is read, and the page says which."
    return f"Of a video {settings.num_frames / settings.fps:.1f} s are read ({settings.num_frames} frames)."


def _theme(gradio: Any) -> Any:
    """The fonts of the visitor's machine: others would be fetched."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _gradio() -> Any:
    # Read when it is imported: nothing is to be told to anybody.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ModelError("the web chat needs gradio: pip install 'tokvid[app]'") from error
    return gradio


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _environment(folder: Path, host: str) -> Iterator[None]:
    """Uploads and copies lie in ``folder``, and the server asks itself whether it is up without a proxy."""
    direct = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1", "localhost", host]))
    changes = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
