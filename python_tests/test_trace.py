"""DecodingTrace: numbers that agree with the reference, records that a page can show."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_autodeco

from autodeco_ext import DecodingTrace, reference
from autodeco_ext.generation.trace import token_texts


@pytest.fixture(scope="module")
def model():
    return tiny_autodeco()


PROMPT = torch.tensor([[0, 0, 1, 7], [1, 5, 20, 33]])
MASK = (PROMPT != 0).long()


def generate(model, **kwargs):
    arguments = {"attention_mask": MASK, "do_sample": True, "max_new_tokens": 12, "seed": 0}
    return model.generate(PROMPT, **{**arguments, "return_trace": True, **kwargs})


def test_the_trace_agrees_with_the_reference(model):
    result = generate(model, return_dict_in_generate=True, output_logits=True)
    trace = result.trace
    logits = torch.stack(result.logits, dim=1)  # [sequences, new_tokens, vocab]
    probs = reference.sampling_distribution(logits, trace.temperature, trace.top_p)
    chosen = probs.gather(-1, trace.tokens[..., None]).squeeze(-1)
    assert torch.equal(trace.tokens, result.sequences[:, 4:])
    torch.testing.assert_close(trace.logprobs.double(), chosen.log(), atol=1e-5, rtol=1e-5)
    assert torch.equal(trace.kept, (probs > 0).sum(-1))
    entropy = reference.distribution_stats(logits, trace.temperature)[..., 1]
    torch.testing.assert_close(trace.entropy.double(), entropy, atol=1e-5, rtol=1e-5)
    assert trace.mask.all()


def test_the_trace_holds_the_predictions_of_a_fresh_forward_pass(model):
    result = generate(model)
    mask = torch.cat([MASK, torch.ones(2, 12, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        output = model(result.sequences, attention_mask=mask, position_ids=positions)
    for name in ("temperature", "top_p"):
        expected = getattr(output, name)[:, 3:-1]
        torch.testing.assert_close(getattr(result.trace, name), expected, atol=1e-4, rtol=1e-4)


def test_the_trace_shows_what_the_caller_overrode(model):
    trace = generate(model, temperature=torch.tensor([0.5, 1.5]), top_p=0.7).trace
    assert torch.equal(trace.temperature, torch.tensor([[0.5], [1.5]]).expand(2, 12))
    assert torch.equal(trace.top_p, torch.full((2, 12), 0.7))


def test_tokens_after_the_end_are_masked(model):
    tokens = generate(model).sequences
    end = tokens[0, 6].item()  # the third new token of the first sequence
    result = generate(model, eos_token_id=end, pad_token_id=0)
    trace = result.trace
    for row in range(2):
        ended = (trace.tokens[row] == end).nonzero().flatten().tolist()
        length = ended[0] + 1 if ended else trace.tokens.shape[1]
        assert trace.mask[row].tolist() == [i < length for i in range(trace.tokens.shape[1])]
    assert not trace.mask.all()
    records = trace.to_records()
    assert [len(record) for record in records] == trace.mask.sum(-1).tolist()
    assert trace.summary()["tokens"] == trace.mask.sum()


def test_tracing_does_not_change_the_tokens(model):
    assert torch.equal(generate(model).sequences, generate(model, return_trace=False))


def test_records_are_plain_json(model):
    records = generate(model).trace.to_records()
    assert json.loads(json.dumps(records)) == records
    names = ["position", "token_id", "temperature", "top_p", "kept", "logprob", "entropy"]
    assert list(records[0][0]) == names
    assert [record["position"] for record in records[1]] == list(range(12))


class ByteTokenizer:
    """Tokens are bytes, as the worst case of a byte-level vocabulary."""

    def decode(self, token_ids) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve €5 🙂 done", "🙂", ""])
def test_token_texts_join_to_the_decoded_text(text):
    ids = list(text.encode())
    texts = token_texts(ByteTokenizer(), ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_token_texts_end_inside_a_character_without_losing_anything():
    ids = list("a🙂".encode())[:3]
    assert "".join(token_texts(ByteTokenizer(), ids)) == ByteTokenizer().decode(ids)


def test_an_empty_trace_has_a_summary():
    empty = torch.zeros(1, 0)
    trace = DecodingTrace(*(empty.long(), empty, empty, empty.long(), empty, empty, empty.bool()))
    assert trace.summary()["tokens"] == 0
    assert trace.to_records() == [[]]
