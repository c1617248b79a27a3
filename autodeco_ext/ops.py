"""The public ops. Each normalises its arguments, calls the registered op and returns.

Definitions: docs/semantics.md; the same in plain PyTorch: `autodeco_ext.reference`.
"""

from __future__ import annotations

import torch

from autodeco_ext import _load, _registration  # noqa: F401  (registers the ops and their fakes)
from autodeco_ext._arguments import (
    call,
    checks_rows,
    draw_seeds,
    filter_parameters,
    id_capacity,
    mark_written,
    number,
    require_bool,
    require_no_grad,
    require_supported_device,
    require_tensor,
    sample_count,
    seed_parameters,
    temperature_parameter,
)
from autodeco_ext._direct import sample_directly
from autodeco_ext.reference import KeptIndices, SampleOutput

_ops = torch.ops.autodeco_ext


def sample(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    *,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    valid_vocab: int | torch.Tensor | None = None,
    num_samples: int | None = None,
    return_info: bool = False,
    check: bool | None = None,
) -> torch.Tensor | SampleOutput:
    """Draws one token per row from temperature, top_k, top_p and min_p, every row with its own.

    The distribution is softmax(logits / temperature), cut by top_k, then top_p, then min_p, each on
    what the one before kept, and renormalised. The draw inverts its cumulative sum in index order.
    No sort, no tensor of the size of `logits`.

    Args:
        logits: `[..., vocab]`, float32, bfloat16 or float16, vocabulary stride 1, any row stride,
            1 <= vocab <= 2^20. -inf excludes a token.
        temperature: finite and >= 0; 0 takes the largest logit (lowest index among equals).
        top_p: keeps the shortest prefix, by descending logit, whose mass is at least this; >= 1 is
            off, <= 0 keeps one token.
        top_k: keeps exactly this many, lowest index first among equals; 0, None or at least the
            vocabulary is off.
        min_p: drops tokens less probable than this times the largest; <= 0 or None is off, > 1
            keeps one token.
        seed: int64, key of the Philox4x32-10 generator. A scalar seed with a scalar offset gives
            row r the key (seed, offset + r); a tensor of one seed per row is used as given. None
            draws one seed per row from the torch generator.
        offset: int64, counter of the generator; 0 by default. In a loop, the step: the same seed
            and offset give the same random number. With a scalar seed that of a row at one step is
            that of the row before at the next, so give one seed per row.
        generator: torch generator to draw seeds from; excludes `seed`.
        valid_vocab: columns at or beyond it do not exist (padded embedding tables); >= 1.
        num_samples: draw this many tokens per row; sample s of a row uses the fourth word of the
            random counter, so the first is the one that a single draw gives.
        return_info: return a `SampleOutput` instead of the tokens.
        check: raise on invalid rows (NaN or +inf logits, no finite logit, invalid parameter). None
            is True on the CPU and, because looking stalls the device, False on CUDA; False gives
            them token -1.

    Every parameter is a scalar or a tensor that broadcasts to `logits.shape[:-1]`.

    Returns:
        int64 tokens `logits.shape[:-1]` (`+ [num_samples]`), or a `SampleOutput`.

    Raises:
        ValueError: a shape, device or value that does not fit, or an invalid row, named.
        TypeError: an argument of the wrong type.

    Determinism: with seeds given, a row's token depends on that row alone, bit for bit, whatever
    the batch and the number of threads. Instruction sets may differ by the rounding of a sum.

    Example:
        >>> import torch, autodeco_ext
        >>> logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
        >>> autodeco_ext.sample(logits, torch.tensor([0.0, 1.0]), top_p=0.9, seed=7)
        tensor([2, 0])
    """
    require_tensor("sample", "logits", logits)
    if not logits.is_cpu:  # a quarter of the price of asking for the device
        require_supported_device("sample", logits)
    if seed is None:
        seed, generator = draw_seeds("sample", logits, generator), None
    checks = check is None or check is True
    if checks and generator is None and num_samples is None and return_info is False:
        tokens = sample_directly(
            logits, temperature, top_p, top_k, min_p, valid_vocab, seed, offset
        )
        if tokens is not None:
            return tokens
    require_bool("sample", "return_info", return_info)
    arguments = (
        logits.detach() if logits.requires_grad else logits,  # no output has a gradient
        *filter_parameters("sample", logits, temperature, top_p, top_k, min_p, valid_vocab),
        *seed_parameters("sample", logits, seed, offset, generator),
        sample_count("sample", num_samples),
        checks_rows("sample", check, logits),
    )
    if return_info:
        return SampleOutput(*call(_ops.sample_with_info, *arguments))
    return call(_ops.sample, *arguments)


def filter_logits(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    *,
    valid_vocab: int | torch.Tensor | None = None,
    filter_value: float = -float("inf"),
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """logits / temperature inside the kept set of `sample`, `filter_value` outside.

    What a chain of Hugging Face warpers returns, ties at a boundary aside (semantics.md, 1.3).
    torch.vmap cannot map it: give it the batch as leading dimensions.

    Args:
        logits, temperature, top_p, top_k, min_p, valid_vocab: as in `sample`. The logits must not
            require grad: the op has no gradient.
        filter_value: what excluded tokens get, a number, not NaN, rounded to float32.
        out: float32 tensor of the shape of `logits` to write to; `logits` itself, or memory apart
            from it.

    Returns:
        float32 `logits.shape`. Kept values saturate at the largest finite float32; at T = 0 the
        largest logit is left as it is.

    Raises:
        ValueError, TypeError: as in `sample`; an invalid row is always an error on the CPU, and on
            CUDA, where looking stalls the device, holds `filter_value` in all columns.

    Determinism: as in `sample`.

    Example:
        >>> import torch, autodeco_ext
        >>> autodeco_ext.filter_logits(torch.tensor([0.0, 1.0, 2.0]), temperature=0.5, top_k=2)
        tensor([-inf, 2., 4.])
    """
    require_tensor("filter_logits", "logits", logits)
    require_supported_device("filter_logits", logits)
    require_no_grad("filter_logits", logits)
    filter_value = number("filter_logits", "filter_value", filter_value, "a number")
    parameters = filter_parameters(
        "filter_logits", logits, temperature, top_p, top_k, min_p, valid_vocab
    )
    if out is None:
        out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    else:
        require_tensor("filter_logits", "out", out)
        require_no_grad("filter_logits", out, "out")
    call(_ops.filter_logits_out, logits, *parameters, filter_value, out)
    mark_written(out)
    return out


def kept_indices(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    *,
    valid_vocab: int | torch.Tensor | None = None,
    capacity: int | None = None,
    check: bool | None = None,
) -> KeptIndices:
    """The tokens that `sample` could have drawn, row by row, as lists of columns (CSR).

    Row r keeps `ids[offsets[r] : offsets[r + 1]]`. Stored with a rollout, it lets a trainer apply
    the truncation of the sampler again, without the sampler's logits and for a few bytes a token.

    Args:
        logits, temperature, top_p, top_k, min_p, valid_vocab, check: as in `sample`, except that
            with `check=False` an invalid row has no ids. Leading dimensions are flattened: row r is
            `logits.flatten(0, -2)[r]`.
        capacity: length of `ids`, >= 0. Then nothing waits for the device: on CUDA the call can be
            captured in a graph, and `torch.compile(fullgraph=True)` takes it. Entries past
            `offsets[-1]` are -1; where `offsets[-1]` is larger than the capacity, the ids beyond
            it are left out. None takes as many as there are, which on CUDA reads that number on the
            host, a synchronisation.

    Returns:
        `KeptIndices(offsets, ids)`: int64 `[rows + 1]` and int32 `[offsets[-1]]` (or `[capacity]`),
        ascending within a row. With all filters off a row keeps its finite logits; at T = 0 its
        argmax.

    Raises:
        ValueError, TypeError: as in `sample`.

    Determinism: as in `sample`.

    Example:
        >>> import torch, autodeco_ext
        >>> logits = torch.tensor([[2.0, 0.0, 2.0, 1.0], [0.0, 9.0, 0.0, 0.0]])
        >>> autodeco_ext.kept_indices(logits, top_p=0.9)
        KeptIndices(offsets=tensor([0, 3, 4]), ids=tensor([0, 2, 3, 1], dtype=torch.int32))
    """
    require_tensor("kept_indices", "logits", logits)
    require_supported_device("kept_indices", logits)
    arguments = (
        logits.detach() if logits.requires_grad else logits,  # no output has a gradient
        *filter_parameters("kept_indices", logits, temperature, top_p, top_k, min_p, valid_vocab),
        id_capacity("kept_indices", capacity),
        checks_rows("kept_indices", check, logits),
    )
    return KeptIndices(*call(_ops.kept_indices, *arguments))


def distribution_stats(
    logits: torch.Tensor, temperature: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """The four features of q = softmax(logits / (temperature + 1e-8)) that the top-p head reads.

    Largest q, entropy -sum q ln(q + 1e-8), unbiased variance of the vocabulary's q (0 for a
    vocabulary of one), and the sum of the five largest q. The maximum is subtracted before the
    division, so temperature 0 is allowed.

    Args:
        logits: `[..., vocab]`, float32, bfloat16 or float16, vocabulary stride 1, any row stride,
            1 <= vocab <= 2^20.
            Must not require grad: the op has no gradient (the heads detach these features).
        temperature: scalar, or tensor that broadcasts to `logits.shape[:-1]`; finite and >= 0.

    Returns:
        float32 `logits.shape[:-1] + [4]`.

    Raises:
        ValueError: a shape, device or value that does not fit, or on the CPU an invalid row, named;
            on CUDA, where looking stalls the device, such a row holds NaN.
        TypeError: an argument of the wrong type.

    Determinism: bitwise independent of batch and threads.

    Example:
        >>> import torch, autodeco_ext
        >>> autodeco_ext.distribution_stats(torch.zeros(1, 4))[0, 0]
        tensor(0.2500)
    """
    require_tensor("distribution_stats", "logits", logits)
    require_supported_device("distribution_stats", logits)
    require_no_grad("distribution_stats", logits)
    parameters = temperature_parameter("distribution_stats", temperature, logits)
    return call(_ops.distribution_stats, logits, *parameters)
