"""Talk with a trained video language model, in text and video.

tokvid chat
tokvid chat -p "make a clip in which a fox moves left over grass"
tokvid chat -p "what happens here?" --video clip.mp4
tokvid chat --script dialog.jsonl --out answers
tokvid chat --web

In a terminal, /help lists the commands. Clips are shown in coloured blocks, saved as mp4 files, and their paths
printed. A script holds a message a line, {"role": "user", "content": "..."} or with pieces in a list, {"type": "text",
"text": "..."} and {"type": "video", "path": "..."}; the whole dialogue comes back as OUT/dialog.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokvid.cli.generate import DEFAULT_MODEL

_HOST, _PORT = "127.0.0.1", 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``[MODEL] [-p TEXT | --script FILE | --web]`` and how to answer."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a video language model that was trained to talk: a folder, or org/name on the Hub (default"
        f" {DEFAULT_MODEL}, which is shipped)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("-p", "--prompt", metavar="TEXT", help="say this, print the answer, and end")
    way.add_argument("--script", metavar="FILE", help="a dialogue as JSON lines, whose answers are to be given")
    way.add_argument("--web", action="store_true", help="a page for the browser (needs tokvid[app])")
    parser.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="with -p: a video to show before it (repeatable)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where clips are written (default: a new tokvid-chat-... here)")
    parser.add_argument("--mode", help="how videos are drawn: next_token, maskgit or frame, as far as trained")
    parser.add_argument("--steps", type=int, help="refinements of the masked modes")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance of videos; 1 is off")
    parser.add_argument("--temperature", type=float, help="of words: above 0, lower is surer (default: the likeliest)")
    parser.add_argument("--max-words", type=int, default=256, metavar="N", help="ids of text an answer has at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", default=_HOST, help="with --web: where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=_PORT, help="with --web")


def run(arguments: argparse.Namespace) -> int:
    """Load the model and talk, in the way that was asked for."""
    from tokvid.cli.chat_script import read_script, run_script
    from tokvid.cli.chat_session import ChatSession, checked_text
    from tokvid.cli.drawing_options import check_drawing
    from tokvid.cli.main import UsageError
    from tokvid.video_source import existing_file

    page = {"--out": arguments.out, "--steps": arguments.steps, "--guidance": arguments.guidance}
    page |= {"--temperature": arguments.temperature}
    unused = [option for option, value in page.items() if value is not None]
    if arguments.web and unused:
        raise UsageError(f"{', '.join(unused)}: the page asks for what it needs; leave them out with --web")
    if not arguments.web and (arguments.host, arguments.port) != (_HOST, _PORT):
        raise UsageError("--host and --port are for --web")
    if not 0 < arguments.port < 1 << 16:
        raise UsageError(f"--port must be from 1 to 65535, got {arguments.port}")
    if arguments.video and arguments.prompt is None:
        raise UsageError("--video is for -p; in a conversation say /video FILE")
    if arguments.prompt is not None and not checked_text(arguments.prompt) and not arguments.video:
        raise UsageError("-p has nothing to say: give a text, or show a --video")
    for path in (*arguments.video, *([arguments.script] if arguments.script is not None else [])):
        existing_file(path)  # before the model is loaded, which takes a while
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and out.is_file():
        raise UsageError(f"--out names the folder for clips, and {out} is a file")
    check_drawing(arguments)
    if arguments.web:
        from tokvid.cli.chat_web_page import MOST_SEED

        if arguments.seed > MOST_SEED:
            raise UsageError(f"--seed must be at most {MOST_SEED} with --web, got {arguments.seed}")
    script = None if arguments.script is None else Path(arguments.script)
    messages = [] if script is None else read_script(script, out)
    from transformers.utils import logging as transformers_logging

    from tokvid.runtime import default_device, loading_dtype
    from tokvid_lm import VideoLM

    transformers_logging.disable_progress_bar()
    lm = VideoLM.from_pretrained(arguments.model, dtype=loading_dtype()).to(default_device())
    lm.processor.check_chats()
    name = Path(arguments.model).name
    video: dict[str, Any] = {"steps": arguments.steps, "guidance_scale": arguments.guidance}
    if arguments.web:
        from tokvid.cli.chat_web import serve

        code: int = serve(
            lm,
            name=name,
            host=arguments.host,
            port=arguments.port,
            mode=arguments.mode,
            seed=arguments.seed,
            max_new_tokens=arguments.max_words,
        )
        return code
    session = ChatSession(
        lm,
        name=name,
        folder=out,
        mode=arguments.mode,
        seed=arguments.seed,
        video={key: value for key, value in video.items() if value is not None},
        text=None if arguments.temperature is None else {"temperature": arguments.temperature},
        max_new_tokens=arguments.max_words,
    )
    if script is not None:
        return run_script(session, script, messages)
    from tokvid.cli.chat_terminal import Terminal

    terminal = Terminal(session)
    if arguments.prompt is not None:
        for path in arguments.video:
            terminal.note(session.attach(path))
        return terminal.answer_once(arguments.prompt)
    return terminal.talk()
