"""Loading models and tokenizers for the commands, with errors in one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodeco_ext.cli.errors import UserError, told_to_the_user
from autodeco_ext.cli.program import to_type

# What transformers raises for a missing folder, a missing file in it, a broken file, or an unknown
# architecture.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError)


def load_checkpoint(path: str) -> tuple[Any, Any]:
    """Return (model, tokenizer) of an AutoDeco checkpoint, in eval mode."""
    from autodeco_ext import AutoDecoModelForCausalLM

    base = _config(path).get("base_model_name_or_path") if Path(path).is_dir() else None
    with quiet(), _loading_errors_told(path, base):
        model = AutoDecoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    folder = Path(path)
    own = not folder.is_dir() or any(folder.glob("tokenizer*"))
    return model, load_tokenizer(path if own else model.autodeco_config.base_model_name_or_path)


def load_base(path: str, dtype: Any, **head_options: Any) -> Any:
    """Return an AutoDecoModelForCausalLM with new heads on a base model, in eval mode."""
    from autodeco_ext import AutoDecoModelForCausalLM

    # Absolute, because a heads checkpoint names its base and is loaded from anywhere.
    name = str(Path(path).resolve()) if Path(path).is_dir() else path
    with quiet(), _loading_errors_told(name):
        return AutoDecoModelForCausalLM.from_base(name, dtype=dtype, **head_options).eval()


def load_tokenizer(path: str) -> Any:
    """Return the tokenizer of a folder or hub repository."""
    from transformers import AutoTokenizer

    with quiet(), _loading_errors_told(path):
        return AutoTokenizer.from_pretrained(path)


def check_checkpoint(path: str) -> None:
    """Refuse what cannot be an AutoDeco checkpoint, before anything is loaded."""
    _check_reachable(path, "model")
    if Path(path).is_dir() and not _has_heads(path):
        raise UserError(
            f"{path} holds a base model without heads; put heads on it with:"
            f" {to_type(['init', path, '--output', 'heads'])}"
        )


def check_base_model(path: str) -> None:
    """Refuse what cannot be a base model, before anything is loaded."""
    _check_reachable(path, "base model")
    if Path(path).is_dir() and _has_heads(path):
        raise UserError(f"{path} is an AutoDeco checkpoint already; give its base model")


def _check_reachable(path: str, what: str) -> None:
    """Refuse a folder that is not there, before transformers asks a hub for it."""
    looks_like_a_folder = path.startswith((".", "/", "~")) or path.count("/") != 1
    if not Path(path).is_dir() and looks_like_a_folder:
        raise UserError(
            f"the {what} must be a folder or a hub repository (owner/name), got {path!r}, which is"
            f" no folder{_seen_from_here(path)}"
        )


def _seen_from_here(path: str) -> str:
    """Where a folder that is not there was looked for, and one of its name that is there."""
    name = Path(path).name
    if name and Path(name).is_dir():
        return f" (did you mean './{name}'?)"
    return "" if Path(path).is_absolute() else f" in {Path.cwd()}"


def _has_heads(folder: str) -> bool:
    return _config(folder).get("model_type") == "autodeco"


def _config(folder: str) -> dict[str, Any]:
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no model (no config.json)")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} must be readable JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} must hold a JSON object, got {type(config).__name__}")
    return config


@contextlib.contextmanager
def _loading_errors_told(*names: str | None) -> Iterator[None]:
    """Tell why loading failed; names: the models that were asked for, folders or not."""
    with told_to_the_user(*_LOADING_ERRORS):
        try:
            yield
        except OSError as error:
            missing = next((name for name in names if name and not _is_here(name)), None)
            if missing is None or "gated" in str(error):
                raise
            raise UserError(
                f"{missing!r} is no folder{_seen_from_here(missing)}, not in the local cache, and"
                " the hub cannot be reached (or has no such model)"
            ) from error


def _is_here(name: str) -> bool:
    """Whether a model is in a folder or the cache, at least in part."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # not the name of a repository
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notes of the libraries, which come between our own lines."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(hub_logging.CRITICAL)  # every retry is told, then the failure
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_verbosity)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
