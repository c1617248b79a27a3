"""vLLM's sampler: its Triton top-p on CUDA, its sort on the CPU, and its exponential race.

The two source files that bench/fetch_peers.py takes from the wheel run unchanged. What they import
from the rest of vLLM (platform, logger, environment) is stood in for below.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
import types

import torch

from bench.cases.kept_bounds import filtered_up_to_ties_is_right, token_up_to_ties_is_right
from bench.fetch_peers import requirement
from bench.providers import NOT_FETCHED, PEERS, Missing, Provider, torch_sort

FOLDER = PEERS / "vllm"
_SAMPLER = "vllm.v1.sample.ops.topk_topp_sampler"


class _Platform:
    """What the two files ask of `vllm.platforms.current_platform`."""

    def __init__(self, device: str) -> None:
        self.device_type = device

    def is_cpu(self) -> bool:
        return self.device_type == "cpu"

    def is_cuda(self) -> bool:
        return self.device_type == "cuda"

    is_cuda_alike = is_cuda

    def is_xpu(self) -> bool:
        return False


class _Logger(logging.Logger):
    info_once = logging.Logger.info
    debug_once = logging.Logger.debug
    warning_once = logging.Logger.warning


def _num_compute_units(device: int | None = 0) -> int:
    return torch.cuda.get_device_properties(device or 0).multi_processor_count


def _stand_ins(device: str) -> dict[str, dict[str, object]]:
    """Module -> the names that are imported from it."""
    platforms = {"current_platform": _Platform(device), "CpuArchEnum": None}
    modules: dict[str, dict[str, object]] = {
        "vllm.envs": {"VLLM_TRITON_JIT_WARMUP_NUM_THREADS": 1},
        "vllm._aiter_ops": {"rocm_aiter_ops": None},
        "vllm.config.model": {"PROCESSED_LOGPROBS_MODES": (), "LogprobsMode": str},
        "vllm.logger": {"init_logger": _Logger},
        "vllm.platforms": platforms,
        "vllm.platforms.interface": {"DeviceCapability": tuple},
        "vllm.triton_utils": {"HAS_TRITON": device == "cuda"},
        "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": contextlib.nullcontext},
        "vllm.utils.platform_utils": {"num_compute_units": _num_compute_units},
    }
    if device == "cuda":
        triton = importlib.import_module("triton")
        language = importlib.import_module("triton.language")
        modules["vllm.triton_utils"] |= {"triton": triton, "tl": language}
    return modules


@functools.cache
def load(device: str) -> types.ModuleType | None:
    """The module of vLLM's sampler for one device, or None where it was not fetched."""
    if not (FOLDER / "vllm" / "v1" / "sample" / "ops" / "topk_topp_sampler.py").is_file():
        return None
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        del sys.modules[name]  # that of another device
    package = types.ModuleType("vllm")
    package.__path__ = [str(FOLDER / "vllm")]
    sys.modules["vllm"] = package
    for name, attributes in _stand_ins(device).items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(attributes)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)
    return importlib.import_module(_SAMPLER)


def _filter(sampler: types.ModuleType, device: str):
    def filter_logits(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        # The kernels write into their input, which therefore has to be a copy, as it is in vLLM.
        scaled = torch_sort.scaled_logits(logits, t)
        if device == "cpu":
            return sampler.apply_top_k_top_p_pytorch(scaled, None, p, allow_cpu_sync=True)
        return sampler.apply_top_k_top_p(scaled, None, p)

    return filter_logits


def _sampler(device: str) -> types.ModuleType | Missing:
    try:
        return load(device) or Missing(NOT_FETCHED)
    except ImportError as error:  # such as a torch without Triton
        return Missing(f"does not import: {error}")


def filter_logits(device: str) -> Provider | Missing:
    sampler = _sampler(device)
    if isinstance(sampler, Missing):
        return sampler
    return Provider(
        _filter(sampler, device), filtered_up_to_ties_is_right, package=requirement("vllm")
    )


def sample(device: str) -> Provider | Missing:
    sampler = _sampler(device)
    if isinstance(sampler, Missing):
        return sampler
    filtered = _filter(sampler, device)

    def draw(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        probs = filtered(logits, t, p).softmax(dim=-1, dtype=torch.float32)
        return sampler.random_sample(probs, {})

    return Provider(draw, token_up_to_ties_is_right, package=requirement("vllm"))
