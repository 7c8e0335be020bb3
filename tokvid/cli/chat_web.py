"""The chat as a page for the browser: a Gradio application around :class:`~tokvid.cli.chat_web_page.Page`.

It listens on this machine alone unless told otherwise, asks no other machine for anything, and gives out no file but
those of its own folder, which is gone when the server ends. What is said and drawn is the page's affair.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.chat_web_layout import MOST_MEGABYTES, Layout
from tokvid.cli.chat_web_page import ChatHost
from tokvid.errors import DataError, ModelError
from tokvid.interruption import deferred_interrupt

if TYPE_CHECKING:
    from tokvid_lm import VideoLM
    from tokvid_lm.samplers.sampling import Sampling

_VISITORS = 64  # whose conversations, with what the model has read of them, are kept
_KEPT_S = 24 * 3600  # files of conversations that are still open
_STYLE = """
footer { display: none !important; }
#conversation video, #conversation img { min-width: 272px; image-rendering: pixelated; }
#conversation video { width: 100%; max-width: 340px; }
#conversation img { width: auto; max-width: 100%; }
#conversation [aria-label="Share"] { display: none; }
#status { min-height: 1.6em; }
#notice { color: #b45309; }
"""
# Clips last a second or two: they play over and over (Gradio takes back what is written into a video's loop). What the
# browser forbids to play it does not play, and nothing breaks.
_LOOP = """
() => {
  const play = ({target}) => {
    if (!target.closest("#conversation")) return;
    target.muted = true;
    target.play().catch(() => {});
  };
  for (const name of ["loadeddata", "ended"]) document.addEventListener(name, play, true);
}
"""


def serve(
    lm: VideoLM,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    mode: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
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
        open_server(lm, host=host, port=port, **options) as at,
    ):
        print(f"{at} (Ctrl-C ends it)", flush=True)
        while not came():
            time.sleep(0.2)
    return 0


@contextmanager
def open_server(lm: VideoLM, *, host: str = "127.0.0.1", port: int = 7860, **options: Any) -> Iterator[str]:
    """Serve inside the block and give the address; ``options`` are those of :func:`build_app`."""
    with tempfile.TemporaryDirectory(prefix="tokvid-chat-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with _environment(folder, host):  # read when Gradio is imported, too
            gradio = _gradio()
            app = build_app(lm, folder=folder, **options)
            try:
                app.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
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
            except ValueError as error:
                if "not accessible" not in str(error):
                    raise
                # Gradio asks its own page once, and gives up after some seconds.
                raise DataError(
                    f"the page at port {port} of {host} does not answer: a proxy is between, or the machine is too"
                    " busy; try again"
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
        Layout(gradio, host, mode, seed).connect(app)
    app.queue(default_concurrency_limit=1, api_open=False)
    return app


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
