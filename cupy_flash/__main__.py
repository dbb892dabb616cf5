"""`python -m cupy_flash <command>`."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from cupy_flash import __version__
from cupy_flash._src.cli import UserError, bench, check, compile, demo, explain, info, tune
from cupy_flash._src.notice import say

COMMANDS = {
    "demo": demo,
    "info": info,
    "compile": compile,
    "explain": explain,
    "check": check,
    "bench": bench,
    "tune": tune,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 after an error that the user can put right, 2 where the machine
    lacks what the command is for, 130 when interrupted, 141 where nobody reads the output any more.

    argparse itself exits with status 2 on a malformed command line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: any path can be told
    command = "cupy_flash"
    try:
        try:
            args = _parser().parse_args(argv)
            command = f"cupy_flash {args.command}"
            args.run(args)
        finally:
            _flush()
    except UserError as error:
        say(f"{command}: {error}")
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # of a shell, for what SIGPIPE ended
    except OSError as error:
        say(f"{command}: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cupy_flash", description="FlashAttention for CuPy and NumPy.")
    parser.add_argument("--version", action="version", version=f"cupy_flash {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def _flush() -> None:
    """Write what is buffered while an error can still be told; the interpreter would complain when it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # takes what is left
        os.close(nowhere)
        raise


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a command writes when it ends is written
    sys.exit(main())
