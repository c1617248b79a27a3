"""autodeco init: new heads on a base model."""

from __future__ import annotations

import argparse

from autodeco_ext.cli.arguments import check_output_folder, nonempty, path, positive_int, seed
from autodeco_ext.cli.errors import UserError, told_to_the_user
from autodeco_ext.cli.loading import check_base_model, load_base
from autodeco_ext.cli.progress import step

SUMMARY = "put new, untrained heads on a base model"
DESCRIPTION = """\
Write a checkpoint with new, untrained heads for a base model. It holds the heads only; the base
model is loaded from where it is now. Untrained heads predict temperatures around 1 and top-p
around 0.5, different for every token: train them before you judge what they generate.
"""
EXAMPLES = """\
examples:
  autodeco init Qwen/Qwen3-0.6B --output heads
  autodeco init ./my-model --output heads --seed 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base", type=nonempty, help="base model: a folder, or a hub repository (owner/name)"
    )
    parser.add_argument("--output", type=path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--hidden-size",
        type=positive_int,
        default=256,
        help="hidden width of both heads (default: 256, as released)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the initial weights (default: 0)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a checkpoint that is already there"
    )


def run(arguments: argparse.Namespace) -> int:
    output = arguments.output
    check_output_folder(output)
    if output.is_dir() and any(output.iterdir()) and not arguments.force:
        raise UserError(f"--output must be a new or empty folder (or add --force), got {output}")
    check_base_model(arguments.base)
    with step("loading the base model"):
        import torch

        torch.manual_seed(arguments.seed)
        model = load_base(
            arguments.base,
            "auto",
            temperature_hidden_size=arguments.hidden_size,
            top_p_hidden_size=arguments.hidden_size,
        )
    with told_to_the_user(OSError, ValueError):
        model.save_pretrained(output)
    count = sum(one.numel() for one in model.heads.parameters())
    print(
        f"Wrote untrained heads ({count:,} parameters) for"
        f" {model.autodeco_config.base_model_name_or_path} to"
        f" {output}. They know nothing yet: train them before you judge what they generate."
    )
    return 0
