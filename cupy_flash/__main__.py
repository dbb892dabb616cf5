"""`python -m cupy_flash <command>`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from cupy_flash import __version__
from cupy_flash.cli import UserError, bench, check, compile, demo, explain, info, tune

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
    lacks what the command is for.

    argparse itself exits with status 2 on a malformed command line.
    """
    parser = argparse.ArgumentParser(prog="cupy_flash", description="FlashAttention for CuPy and NumPy.")
    parser.add_argument("--version", action="version", version=f"cupy_flash {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"cupy_flash {args.command}: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a command writes when it ends is written
    sys.exit(main())
