"""Loading models and tokenizers for the commands, with errors in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodeco_ext.cli.errors import UserError, told_to_the_user

# What transformers raises for a missing folder, a missing file in it, a broken file, or an unknown
# architecture.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError)


def load_checkpoint(path: str) -> tuple[Any, Any]:
    """Return (model, tokenizer) of an AutoDeco checkpoint, in eval mode."""
    from autodeco_ext import AutoDecoModelForCausalLM

    with quiet(), told_to_the_user(*_LOADING_ERRORS):
        model = AutoDecoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    folder = Path(path)
    own = not folder.is_dir() or any(folder.glob("tokenizer*"))
    return model, load_tokenizer(path if own else model.autodeco_config.base_model_name_or_path)


def load_base(path: str, dtype: Any, **head_options: Any) -> Any:
    """Return an AutoDecoModelForCausalLM with new heads on a base model, in eval mode."""
    from autodeco_ext import AutoDecoModelForCausalLM

    # Absolute, because a heads checkpoint names its base and is loaded from anywhere.
    name = str(Path(path).resolve()) if Path(path).is_dir() else path
    with quiet(), told_to_the_user(*_LOADING_ERRORS):
        return AutoDecoModelForCausalLM.from_base(name, dtype=dtype, **head_options).eval()


def load_tokenizer(path: str) -> Any:
    """Return the tokenizer of a folder or hub repository."""
    from transformers import AutoTokenizer

    with told_to_the_user(*_LOADING_ERRORS):
        return AutoTokenizer.from_pretrained(path)


def check_reachable(path: str, what: str) -> None:
    """Refuse a folder that is not there, before transformers asks a hub for it."""
    looks_like_a_folder = path.startswith((".", "/", "~")) or path.count("/") != 1
    if not Path(path).is_dir() and looks_like_a_folder:
        raise UserError(
            f"the {what} must be a folder or a hub repository (owner/name), got {path!r}"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notes of transformers, which come between our own lines."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
