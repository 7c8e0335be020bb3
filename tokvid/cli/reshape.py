"""Let another number of processes resume a training under DeepSpeed.

tokvid reshape runs/web-7b/lm
tokvid train lm/web-7b --resume --training.gradient_accumulation=4      # with half as many GPUs

The newest whole checkpoint of the run gets DeepSpeed's universal form beside the parts that each process wrote. As many
passes a step as before, over all processes, see the same documents: half as many processes need twice the
gradient_accumulation. It is exact up to rounding, where a resume by the same number of processes is exact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokvid.checkpoint import newest_valid, tell_newest
from tokvid.errors import CheckpointError
from tokvid.run_lock import only_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``RUN``."""
    parser.add_argument("run", metavar="RUN", help="the output folder of a training")


def run(arguments: argparse.Namespace) -> int:
    """Reshape, and say which checkpoint it was."""
    from tokvid.universal_checkpoint import make_universal

    output = Path(arguments.run)
    with only_run(output, wanted=output.is_dir()):
        newest = newest_valid(output)
        tell_newest(newest)
        if newest.path is None:
            raise CheckpointError(f"{output} has no whole checkpoint: name the output folder of a training")
        make_universal(newest.path)
    print(newest.path)
    return 0
