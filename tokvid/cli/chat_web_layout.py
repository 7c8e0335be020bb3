"""How the web chat looks: Gradio's components, and what happens on the page when one is used.

It knows no server. What is said, drawn and refused is the affair of :class:`~tokvid.cli.chat_web_page.Page`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.chat_session import what_it_knows
from tokvid.cli.chat_web_page import CLIP_SUFFIXES, MOST_CHARACTERS, ChatHost, Drawing, Message, Page
from tokvid.errors import TokvidError

if TYPE_CHECKING:
    from tokvid_lm.samplers.sampling import Sampling

MOST_MEGABYTES = 64  # of an upload
_MOST_STEPS, _MOST_GUIDANCE = 64, 10.0  # on the sliders, unless the model was evaluated with more
_NO_PAGE = "this conversation is not kept any more: load the page anew"
_SAVE_FILE = "() => setTimeout(() => document.querySelector('#conversation-file')?.click(), 300)"


class Layout:
    """The components of the page, and what happens when one is used."""

    def __init__(self, gradio: Any, host: ChatHost, mode: str | None, seed: int) -> None:
        self._gradio = gradio
        self._host = host
        self.page = gradio.State(None)
        gradio.Markdown(f"### {html.escape(host.name)}: text and video")
        for line in what_it_knows(host.lm):
            gradio.HTML(html.escape(line), elem_id="about")
        with gradio.Row():
            with gradio.Column(scale=4):
                self.conversation = gradio.Chatbot(
                    elem_id="conversation",
                    show_label=False,
                    height="calc(100vh - 340px)",
                    min_height=320,
                    render_markdown=False,
                    allow_tags=False,
                    buttons=[],
                    feedback_options=None,
                    placeholder="Say something, or attach a video.",
                )
                self.status = gradio.HTML("", elem_id="status")
                self.notice = gradio.HTML("", elem_id="notice")
                self.box = gradio.MultimodalTextbox(
                    elem_id="box",
                    show_label=False,
                    placeholder=f"a message of at most {MOST_CHARACTERS:,} characters, and clips",
                    file_count="multiple",
                    file_types=list(CLIP_SUFFIXES),
                    max_plain_text_length=2**31 - 1,  # else a long text becomes a file
                    interactive=False,  # until there is a conversation
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
        most = max([_MOST_STEPS, *(sampling.steps for sampling in known)])
        scales = [1.0, _MOST_GUIDANCE, *(sampling.guidance_scale for sampling in known)]
        self.steps = gradio.Slider(1, most, step=1, elem_id="steps", **_steps(chosen))
        self.guidance = gradio.Slider(
            min(scales),
            max(scales),
            value=1.0 if chosen is None else chosen.guidance_scale,
            step=0.1,
            label="guidance (1 is off)",
            elem_id="guidance",
            visible=bool(known) and self._host.lm.settings.knows_null_prompt,
        )
        self.seed = gradio.Number(value=seed, precision=0, label="seed (Retry takes the next)", elem_id="seed")
        self.start = gradio.Number(value=0, label="read attached videos from (s)", elem_id="start")
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
            "inputs": [self.page, self.codes],
            "outputs": [*view, self.seed],
        }
        told = [*view, self.notice]
        app.load(self._open, None, [self.page, *told, self.box], **at_once)
        # What was chosen is taken with the message: an answer whose own inputs were refused would never begin.
        asking = [self.page, self.codes, self.box, self.start, *settings]
        said = self.box.submit(self._ask, asking, [*told, self.box], **at_once)
        again = self.retry.click(self._ask_again, [self.page, self.codes, *settings], told, **at_once)
        for asked in (said, again):
            asked.then(**follow, **in_turn)
        self.cancel.click(self._cancel, [self.page, self.codes], told, **at_once)
        for clear in (self.clear.click, self.conversation.clear):
            clear(self._clear, [self.page, self.codes], told, **at_once)
        self.codes.change(self._view, [self.page, self.codes], view, **at_once)
        self.mode.change(self._mode, self.mode, [self.steps, self.guidance], **at_once)
        ready = self.save.click(self._save, self.page, [self.file, self.notice], **at_once)
        ready.then(None, None, None, js=_SAVE_FILE, **at_once)

    def _open(self) -> tuple[Any, ...]:
        page = self._host.open_page()
        return (page, *self._view(page, True), "", self._gradio.update(interactive=True))

    def _ask(
        self,
        page: Page | None,
        codes: bool,
        message: dict[str, Any] | None,
        start: float | None,
        mode: str | None,
        steps: float | None,
        guidance: float | None,
        seed: float | None,
    ) -> Any:
        message = message or {}
        text, files = message.get("text") or "", message.get("files") or []
        taken = False

        def ask(page: Page) -> None:
            nonlocal taken
            taken = page.ask(text, files, start or 0.0, self._drawing(mode, steps, guidance, seed))

        told = self._told(page, codes, ask)
        # What was not taken stays, to be mended.
        return (*told, {"text": "", "files": []} if taken else self._gradio.skip())

    def _ask_again(
        self,
        page: Page | None,
        codes: bool,
        mode: str | None,
        steps: float | None,
        guidance: float | None,
        seed: float | None,
    ) -> tuple[Any, ...]:
        return self._told(page, codes, lambda page: page.ask_again(self._drawing(mode, steps, guidance, seed)))

    def _cancel(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        return self._told(page, codes, Page.cancel)

    def _clear(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        return self._told(page, codes, Page.clear)

    def _answer(self, page: Page | None, codes: bool) -> Iterator[tuple[Any, ...]]:
        if page is None or not page.busy:
            yield (*self._view(page, codes), self._gradio.skip())
            return
        for _ in page.answer():
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

    def _mode(self, mode: str) -> tuple[Any, ...]:
        chosen = self._host.lm.sampling_for(mode)
        return self._gradio.update(**_steps(chosen)), chosen.guidance_scale

    def _save(self, page: Page | None) -> tuple[str | None, str]:
        """The file to download and an empty line, or no file and why."""
        try:
            return (None, _NO_PAGE) if page is None else (str(page.save()), "")
        except TokvidError as error:
            return None, html.escape(str(error))

    def _told(self, page: Page | None, codes: bool, act: Callable[[Page], object]) -> tuple[Any, ...]:
        """What is to be seen after ``act``, and a line that says why it could not be done, if so."""
        if page is None:
            return (*self._view(page, codes), _NO_PAGE)
        try:
            act(page)
            line = ""
        except TokvidError as error:
            line = html.escape(str(error))
        return (*self._view(page, codes), line)

    def _view(self, page: Page | None, codes: bool) -> tuple[Any, ...]:
        """The conversation, the line below it, and whether it can be cancelled, tried again and cleared."""
        if page is None:
            return tuple(self._gradio.skip() for _ in range(5))
        button, busy = self._gradio.update, page.busy
        messages = [{"role": message.role, "content": _content(message)} for message in page.messages(codes=codes)]
        free = not busy
        return (
            messages,
            html.escape(page.status),
            button(interactive=busy),
            button(interactive=free),
            button(interactive=free),
        )


def _content(message: Message) -> Any:
    """A message's content as Gradio takes it, which reads markup even where it renders no Markdown."""
    if isinstance(message.content, Path):
        return {"path": str(message.content)}
    return html.escape(f"\u26a0 {message.content}" if message.kind == "note" else message.content, quote=False)


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
