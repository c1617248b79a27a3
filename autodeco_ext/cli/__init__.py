"""The command `autodeco`: info, init, generate, demo."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from autodeco_ext._version import __version__
from autodeco_ext.cli.arguments import Parser
from autodeco_ext.cli.errors import UserError

_EXAMPLES = """\
examples:
  autodeco demo
  autodeco init Qwen/Qwen3-0.6B --output heads
  autodeco generate --model heads --prompt "Why is the sky blue?"
  autodeco info --json
"""

# Each is a module here with SUMMARY, add_arguments(parser) and run(arguments) -> int; none imports
# transformers before run, so that help and complaints about arguments wait for torch alone, which
# the package imports.
_COMMANDS = ("info", "init", "generate", "demo")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = Parser(
        prog="autodeco",
        description="Language models that predict their own temperature and top-p for every token.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"autodeco_ext {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for name in _COMMANDS:
        module = importlib.import_module(f"autodeco_ext.cli.{name}")
        subparser = commands.add_parser(
            name, help=module.SUMMARY, description=module.DESCRIPTION, epilog=module.EXAMPLES
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for bad input, 130 if interrupted."""
    try:
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as leaving:  # argparse: 0 after --help and --version, 2 after a complaint
        return leaving.code if isinstance(leaving.code, int) else 2
    except UserError as error:
        print(f"autodeco {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autodeco: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (autodeco ... | head); the interpreter must not complain
        # on exit.
        sys.stdout = None
        return 0
