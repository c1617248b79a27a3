"""AutoDeco checkpoints on disk: finding, reading, checking and writing the head tensors.

A checkpoint is a folder with config.json and one or more *.safetensors files of any name.
Heads-only: they hold the head tensors and nothing else. Merged: they also hold every base tensor
under the prefix `llm.`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

LOADER = "autodeco_ext.AutoDecoModelForCausalLM.from_pretrained"
BASE_PREFIX = "llm."
HEAD_PREFIXES = ("temp_head.", "top_p_head.")
HEADS_FILE = "model.safetensors"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class HeadTensors:
    """The head tensors of a checkpoint as they are on disk, and the file each came from."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    files: dict[str, Path]
    merged: bool

    def check_shapes(
        self, shapes: Mapping[str, torch.Size], required: Collection[str], reason: str
    ) -> None:
        """Raise ValueError unless the required tensors are there and every tensor fits shapes.

        reason says where the shapes come from, for the message.
        """
        for name in required:
            if name not in self.tensors:
                raise ValueError(
                    f"{LOADER}: tensor {name} must be present with shape {list(shapes[name])}"
                    f" ({reason}), got no such tensor in {self._where()}"
                )
        for name, tensor in self.tensors.items():
            file = self.files[name]
            if name not in shapes:
                raise ValueError(
                    f"{LOADER}: head tensors must be among {', '.join(shapes)} ({reason}), got the"
                    f" extra tensor {name} of shape {list(tensor.shape)} in {file}"
                )
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"{LOADER}: tensor {name} must have shape {list(shapes[name])} ({reason}),"
                    f" got {list(tensor.shape)} in {file}"
                )

    def _where(self) -> str:
        files = sorted(set(self.files.values()))
        return ", ".join(str(file) for file in files) if files else str(self.folder)


def find_checkpoint(name_or_path: str | os.PathLike, **hub_options: object) -> Path:
    """Return the local folder of a checkpoint; one on the Hugging Face hub is fetched first.

    hub_options: cache_dir, force_download, local_files_only, revision, token.

    Raises:
        TypeError: neither str nor path.
        OSError: neither a folder nor a repository that can be reached.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            f"{LOADER}: the checkpoint must be a folder or the name of a hub repository, got"
            f" {type(name_or_path).__name__}"
        )
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub_options))
    except Exception as error:
        raise OSError(
            f"{LOADER}: the checkpoint must be a folder or a hub repository that can be reached,"
            f" got {str(name_or_path)!r} ({type(error).__name__}: {error})"
        ) from error


def read_head_tensors(folder: Path) -> HeadTensors:
    """Read the head tensors from every *.safetensors file of a folder.

    An index file is not needed and not trusted: splitting and merging tools leave stale ones
    behind.

    Raises:
        ValueError: no or unreadable files, a tensor that belongs to neither heads nor base, a name
            that occurs twice, or a head tensor that is not float32, bfloat16 or float16 or that
            holds NaN or infinity.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{LOADER}: the folder must hold a *.safetensors file, got {folder}")
    tensors: dict[str, torch.Tensor] = {}
    files: dict[str, Path] = {}
    merged = False
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (a safe_open handle cannot be iterated)
                    if name.startswith(BASE_PREFIX):
                        merged = True
                        continue
                    if not name.startswith(HEAD_PREFIXES):
                        raise ValueError(
                            f"{LOADER}: tensor names must start with temp_head., top_p_head. or (in"
                            f" a merged checkpoint) llm., got {name} of shape"
                            f" {file.get_slice(name).get_shape()} in {path}"
                        )
                    if name in files:
                        raise ValueError(
                            f"{LOADER}: tensor {name} must occur once, got it in {files[name]} and"
                            f" in {path}"
                        )
                    tensors[name], files[name] = file.get_tensor(name), path
        except SafetensorError as error:
            raise ValueError(f"{LOADER}: {path} must be a safetensors file, got {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{LOADER}: tensor {name} must be float32, bfloat16 or float16, got {tensor.dtype}"
                f" in {files[name]}"
            )
        if not tensor.isfinite().all():
            where = tuple((~tensor.isfinite()).nonzero()[0].tolist())
            raise ValueError(
                f"{LOADER}: tensor {name} must be free of NaN and infinity, got"
                f" {tensor[where].item()} at index {list(where)} in {files[name]}"
            )
    return HeadTensors(folder, tensors, files, merged)


def write_head_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a heads-only checkpoint's tensors; return the file.

    Raises:
        ValueError: the folder holds other *.safetensors files, whose tensors would be read back
            with these, or a file of this name with other tensors, which would be lost.
    """
    target = folder / HEADS_FILE
    others = [path.name for path in sorted(folder.glob("*.safetensors")) if path != target]
    if others:
        raise ValueError(
            "autodeco_ext.AutoDecoModelForCausalLM.save_pretrained: the folder must hold no other"
            f" *.safetensors files (they would be read as part of the checkpoint), got {others}"
        )
    if target.is_file():
        with safe_open(target, framework="pt") as file:
            names = [n for n in file.keys() if not n.startswith(HEAD_PREFIXES)]  # noqa: SIM118
        if names:
            raise ValueError(
                "autodeco_ext.AutoDecoModelForCausalLM.save_pretrained: the folder must not be that"
                f" of another model, got {target} with {names[0]} and {len(names) - 1} more"
            )
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not save_file, which makes files that only their owner can read. Renamed into place: tensors
    # read from an earlier version of the file may still be mapped from it.
    filling = target.with_name(f".{HEADS_FILE}.{os.getpid()}")
    try:
        filling.write_bytes(save(plain, metadata={"format": "pt"}))
        filling.replace(target)
    finally:
        filling.unlink(missing_ok=True)
    return target
