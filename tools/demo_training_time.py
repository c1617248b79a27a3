"""Times the training part of `autodeco demo` on hidden states that were kept from one run of it.

    python tools/demo_training_time.py keep FILE --train-problems 24 --samples 2
    python tools/demo_training_time.py fit FILE EPOCHS

`keep` takes the demo's options, runs it up to the training and writes FILE. `fit` trains new heads
on it with the autodeco_ext that Python finds, so that PYTHONPATH decides which commit is timed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from autodeco_ext.cli import demo
from autodeco_ext.evaluation import experiment
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads
from autodeco_ext.training.fit import CachedPositions, FitSettings, fit_heads


def keep(file: Path, options: list[str]) -> None:
    def write(heads, lm_head, positions, settings, *, vocab, progress) -> None:
        kept = {
            "hidden_states": positions.hidden_states,
            "labels": positions.labels,
            "lm_head": lm_head.weight.detach(),
            "heads": heads.state_dict(),
            "vocab": vocab,
        }
        torch.save(kept, file)
        sys.exit(0)

    experiment.fit_heads = write
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    demo.run(parser.parse_args(options))


def fit(file: Path, epochs: int) -> None:
    kept = torch.load(file)
    rows, hidden_size = kept["lm_head"].shape
    lm_head = nn.Linear(hidden_size, rows, bias=False, device="meta")
    lm_head.weight = nn.Parameter(kept["lm_head"], requires_grad=False)
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=hidden_size))
    heads.load_state_dict(kept["heads"])
    positions = CachedPositions(kept["hidden_states"], kept["labels"], answers=1)
    stamps = [time.perf_counter()]
    history = fit_heads(
        heads,
        lm_head,
        positions,
        FitSettings(epochs=epochs),
        vocab=kept["vocab"],
        progress=lambda _: stamps.append(time.perf_counter()),
    )
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    print(
        f"{len(positions)} positions, {len(steps)} steps in {sum(steps):.2f} s, median step"
        f" {1e3 * statistics.median(steps):.0f} ms, loss of the last epoch {history[-1].loss:.5f}"
    )


if __name__ == "__main__":
    what, name, *rest = sys.argv[1:]
    if what == "keep":
        keep(Path(name), rest)
    else:
        fit(Path(name), int(rest[0]))
