"""Invalid rows on CUDA: visible, harmless to others, an error only for who asks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import autodeco_ext

INF = float("inf")
NAN = float("nan")
ROWS = 40
# Row number -> what is wrong with it.
BAD_LOGITS = {1: NAN, 6: INF, 17: "nothing finite", 38: NAN}
BAD_PARAMETERS = {
    3: ("temperature", -1.0),
    4: ("temperature", NAN),
    9: ("temperature", INF),
    11: ("top_p", NAN),
    20: ("min_p", NAN),
    21: ("top_k", -3),
    39: ("valid_vocab", 0),
}
BAD = sorted(BAD_LOGITS | BAD_PARAMETERS)
GOOD = [row for row in range(ROWS) if row not in BAD]

Arguments = dict[str, Tensor]


def arguments(cuda: torch.device, vocab: int, dtype: torch.dtype) -> tuple[Arguments, Arguments]:
    """Valid rows, and the same with bad ones among them."""
    random = torch.Generator().manual_seed(vocab)
    good = {
        "logits": (3 * torch.randn(ROWS, vocab, generator=random)).to(dtype),
        "temperature": torch.full((ROWS,), 0.9),
        "top_p": torch.linspace(0.1, 1, ROWS),
        "top_k": torch.arange(ROWS) % 7,
        "min_p": torch.linspace(0, 0.01, ROWS),
        "valid_vocab": torch.full((ROWS,), vocab),
    }
    bad = {name: value.clone() for name, value in good.items()}
    for row, value in BAD_LOGITS.items():
        if value == "nothing finite":
            bad["logits"][row] = -INF
        else:
            bad["logits"][row, vocab // 2] = value
    for row, (name, value) in BAD_PARAMETERS.items():
        bad[name][row] = value
    return tuple({name: value.to(cuda) for name, value in case.items()} for case in (good, bad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [50, 32_003])
def test_sample_marks_them_by_default_and_the_others_are_as_without_them(
    cuda: torch.device, vocab: int, dtype: torch.dtype
) -> None:
    good, bad = arguments(cuda, vocab, dtype)
    seed = torch.arange(ROWS, device=cuda)
    for num_samples in (None, 3):
        keys = {"seed": seed, "num_samples": num_samples, "return_info": True}
        expected = autodeco_ext.sample(**good, **keys)
        info = autodeco_ext.sample(**bad, **keys)
        assert info.valid.nonzero().flatten().tolist() == GOOD
        assert (info.tokens[BAD] == -1).all()
        assert (info.kept[BAD] == 0).all()
        assert info.logprobs[BAD].isnan().all()
        assert info.raw_logprobs[BAD].isnan().all()
        assert info.log_kept_mass[BAD].isnan().all()
        for output, without in zip(info, expected, strict=True):
            assert torch.equal(output[GOOD], without[GOOD])
        tokens = autodeco_ext.sample(**bad, seed=seed, num_samples=num_samples)
        assert torch.equal(tokens, info.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [50, 32_003])
def test_filter_logits_gives_them_the_filter_value_and_writes_nowhere_else(
    cuda: torch.device, vocab: int, dtype: torch.dtype
) -> None:
    good, bad = arguments(cuda, vocab, dtype)
    expected = autodeco_ext.filter_logits(**good, filter_value=-7.0)
    around = torch.full((ROWS + 2, vocab + 30), 123.0, device=cuda)
    out = around[1:-1, 11 : 11 + vocab]
    autodeco_ext.filter_logits(**bad, filter_value=-7.0, out=out)
    assert (out[BAD] == -7).all()
    assert torch.equal(out[GOOD], expected[GOOD])
    out.fill_(123)
    assert (around == 123).all()


@pytest.mark.parametrize("vocab", [50, 32_003])
def test_distribution_stats_gives_them_nan(cuda: torch.device, vocab: int) -> None:
    good, bad = arguments(cuda, vocab, torch.float32)
    expected = autodeco_ext.distribution_stats(good["logits"], good["temperature"])
    stats = autodeco_ext.distribution_stats(bad["logits"], bad["temperature"])
    seen = [row for row in BAD if row in BAD_LOGITS or BAD_PARAMETERS[row][0] == "temperature"]
    assert stats[seen].isnan().all()
    others = [row for row in range(ROWS) if row not in seen]
    assert torch.equal(stats[others], expected[others])


@pytest.mark.parametrize("num_rows", [8, 1000])
def test_check_names_the_first_of_them_with_the_cpus_sentence(
    cuda: torch.device, num_rows: int
) -> None:
    for bad_rows in ([num_rows - 1], [5, 6, 7]):
        logits = torch.zeros(num_rows, 60)
        temperature = torch.ones(num_rows)
        temperature[bad_rows[0]] = -0.5
        logits[bad_rows[1:], 3] = NAN
        sentences = []
        for device in (torch.device("cpu"), cuda):
            with pytest.raises(ValueError) as caught:
                autodeco_ext.sample(logits.to(device), temperature.to(device), check=True)
            sentences.append(str(caught.value))
        assert sentences[0] == sentences[1]
        assert f"temperature must be finite and >= 0, got -0.5 in row {bad_rows[0]}" in sentences[1]
    # The device is as good as before.
    assert autodeco_ext.sample(torch.tensor([[0.0, 9.0]], device=cuda), 0.0).tolist() == [1]
