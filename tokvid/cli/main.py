"""The ``tokvid`` command: finds the verb, imports only that verb, and turns errors into one line.

It knows no verb's arguments: a verb is a module of this package with two functions,
``add_arguments(parser)`` and ``run(arguments) -> int``, and one line in :data:`VERBS`. What a user can mend
ends with exit code 2 and one line on stderr; ``--debug`` shows the traceback. Ctrl-C ends with 130.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from tokvid import __version__
from tokvid.errors import TokvidError, did_you_mean

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
# What libraries with their own errors say of a full disk (safetensors; torch's two ways): every word of one of these.
_FULL_DISK = (
    ("No space left on device",),
    ("inline_container.cc", "unexpected pos"),
    ("PytorchStreamWriter failed writing",),
)


@dataclass(frozen=True)
class Verb:
    """``module`` is imported only when the verb runs; ``overrides`` lets it take ``--a.b=value`` arguments,
    which arrive as the list ``arguments.overrides``."""

    module: str
    help: str
    overrides: bool = False


VERBS: dict[str, Verb] = {
    "recipes": Verb("tokvid.cli.recipes", "list, show or copy the run configurations that come with tokvid"),
    "demo": Verb("tokvid.cli.demo", "train a codec and a language model from nothing and show what they draw"),
    "train": Verb("tokvid.cli.train", "train what a recipe describes", overrides=True),
    "plan": Verb("tokvid.cli.plan", "what a recipe takes on given GPUs: memory, hours", overrides=True),
    "reshape": Verb("tokvid.cli.reshape", "let another number of processes resume a training under DeepSpeed"),
    "generate": Verb("tokvid.cli.generate", "draw a video from a caption"),
    "chat": Verb("tokvid.cli.chat", "talk with a video language model in text and video"),
    "encode": Verb("tokvid.cli.encode", "turn videos into codes (.tokvid files)"),
    "tokenize": Verb("tokvid.cli.tokenize", "turn a whole data set into code shards, to train language models on"),
    "decode": Verb("tokvid.cli.decode", "turn codes back into videos"),
    "reconstruct": Verb("tokvid.cli.reconstruct", "send videos through a codec and back"),
    "evaluate": Verb("tokvid.cli.evaluate", "measure a codec or a language model on clips: figures, a table, pictures"),
    "push": Verb("tokvid.cli.push", "put a codec or a language model on the Hugging Face Hub"),
    "convert": Verb("tokvid.cli.convert", "make a codec of tokvid of a file that another project trained"),
    "info": Verb("tokvid.cli.info", "what this machine can do, or what a video, codes, a codec or a model hold"),
}


class UsageError(TokvidError):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UsageError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (``argv`` without the program's name) and return its exit code; a user's error never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Taken out here, so that it may stand anywhere, also after the action of a verb.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    arguments = [a for a in own if a != "--debug"] + arguments[len(own) :]
    try:
        code = _dispatch(arguments)
        # A closed pipe is found here rather than at interpreter exit, where it would print a warning.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        _print_error(str(interrupt) or "stopped by Ctrl-C", "interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        message = one_line(error)
        if debug or message is None:
            raise
        _print_error(message, "error")
        return EXIT_ERROR


def one_line(error: BaseException) -> str | None:
    """The line a user sees for ``error``, or None when it is a fault of ours and deserves a traceback."""
    if is_full_disk(error):
        place = _written(error)
        place = f" while writing {place}" if place else ""
        return (
            f"the disk is full{place}: nothing unfinished was kept under its final name; free some space and run again"
        )
    if isinstance(error, TokvidError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return None


def _written(error: BaseException) -> str:
    """The file that was written when ``error`` came, by its final name, or an empty string."""
    if not isinstance(error, OSError):
        return ""
    # The second name of an error of two files is where it copied or moved to.
    return str(error.filename2 or error.filename or "").removesuffix(".tmp")


def is_full_disk(error: BaseException | None) -> bool:
    """True when ``error``, or what caused it, is a full disk or quota (also from libraries with their own errors)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(all(word in str(error) for word in words) for words in _FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def _dispatch(arguments: list[str]) -> int:
    try:
        return _run_verb(arguments)
    except SystemExit as stop:  # argparse after --help or --version
        return stop.code if isinstance(stop.code, int) else 0


def _run_verb(arguments: list[str]) -> int:
    verb_at = next((i for i, a in enumerate(arguments) if not a.startswith("-")), None)
    before = arguments if verb_at is None else arguments[:verb_at]
    _top_parser().parse_args(before)
    if verb_at is None:
        _top_parser().print_help()
        return 0
    name = arguments[verb_at]
    if name not in VERBS:
        raise UsageError(f"unknown verb {name!r}: {did_you_mean(name, VERBS)} (see tokvid --help)")
    verb = VERBS[name]
    module = importlib.import_module(verb.module)
    code: int = module.run(_parse_verb(name, verb, module, arguments[verb_at + 1 :]))
    return code


def _top_parser() -> Parser:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    parser = Parser(
        prog="tokvid",
        usage="tokvid [--version] [--debug] VERB ...",
        description="Train video codecs, teach language models their codes, and generate video.",
        epilog=f"verbs:\n{lines}\n\n'tokvid VERB --help' shows a verb's arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tokvid {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _parse_verb(name: str, verb: Verb, module: ModuleType, arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog=f"tokvid {name}",
        description=(module.__doc__ or verb.help).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    if not verb.overrides:
        return parser.parse_args(arguments)
    parsed, rest = parser.parse_known_args(arguments)
    for text in rest:
        if not text.startswith("--") or "=" not in text:
            parser.error(f"unrecognized argument {text!r}; a setting of the recipe is written --a.b=value")
    parsed.overrides = rest
    return parsed


def _print_error(message: str, label: str) -> None:
    try:
        print(f"{label}: {message}", file=sys.stderr)
    except BrokenPipeError:
        _silence_stdout()


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):
        # stdout is not a real file (a test, a notebook): then there is nothing to silence.
        return


if __name__ == "__main__":
    raise SystemExit(main())
