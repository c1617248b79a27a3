"""What was decided at every generated token: T, P, nucleus size, probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput


@dataclass
class DecodingTrace:
    """One entry per sequence and generated token: CPU tensors of shape [sequences, new_tokens].

    Entries after a sequence has ended are padding: mask is False there and the other values mean
    nothing.

    Attributes:
        tokens: int64, the generated token ids.
        temperature: float32, what the token was drawn with (the head's, or the caller's override).
        top_p: float32, likewise.
        kept: int64, size of the kept set the token was drawn from.
        logprobs: float32, log-probability of the token in the filtered distribution it was drawn
            from.
        entropy: float32, nats, of softmax(logits / temperature) before the filters.
        mask: bool, True for tokens a sequence really generated (its end-of-sequence token
            included).

    Example:
        >>> import torch
        >>> one = torch.ones(1, 2)
        >>> trace = DecodingTrace(one.long(), one, one, one.long(), one.log(), one * 0, one.bool())
        >>> trace.to_records()[0][0]["temperature"]
        1.0
    """

    tokens: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    kept: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        """Number of sequences."""
        return self.tokens.shape[0]

    def to_records(self, tokenizer: Any = None) -> list[list[dict[str, Any]]]:
        """Return, for each sequence, one JSON-serialisable dict per real token.

        Keys: position (0 for the first generated token), token_id, text (only with a tokenizer),
        temperature, top_p, kept, logprob, entropy. The texts of a sequence joined together are its
        decoded text.
        """
        records = []
        for row in range(len(self)):
            positions = self.mask[row].nonzero().flatten().tolist()
            token_ids = self.tokens[row, positions].tolist()
            texts = token_texts(tokenizer, token_ids) if tokenizer is not None else None
            records.append(
                [
                    {
                        "position": position,
                        "token_id": token_ids[i],
                        **({"text": texts[i]} if texts is not None else {}),
                        "temperature": self.temperature[row, position].item(),
                        "top_p": self.top_p[row, position].item(),
                        "kept": self.kept[row, position].item(),
                        "logprob": self.logprobs[row, position].item(),
                        "entropy": self.entropy[row, position].item(),
                    }
                    for i, position in enumerate(positions)
                ]
            )
        return records

    def summary(self) -> dict[str, float]:
        """Return the number of real tokens and means over them."""
        count = int(self.mask.sum())
        means = {
            f"mean_{name}": getattr(self, name)[self.mask].double().mean().item()
            if count
            else float("nan")
            for name in ("temperature", "top_p", "kept", "entropy")
        }
        return {"tokens": count, **means}


@dataclass
class AutoDecoGenerateOutput(GenerateDecoderOnlyOutput):
    """What generate returns with return_trace=True: Hugging Face's output plus the trace."""

    trace: DecodingTrace | None = None


def token_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """Split the decoded text over its tokens, so that joining the parts gives the whole text.

    A token alone often decodes to something else than in context (leading spaces, halves of a
    UTF-8 character), so each token gets what it adds to the text decoded so far; a token that ends
    inside a character adds nothing and the next one gets the whole character.
    """
    texts = []
    start, done = 0, 0  # token_ids[start:done] is the context that is already accounted for
    for end in range(1, len(token_ids) + 1):
        context = tokenizer.decode(token_ids[start:done])
        text = tokenizer.decode(token_ids[start:end])
        if text.endswith("\ufffd") and end < len(token_ids):
            texts.append("")
            continue
        texts.append(text[len(context) :])
        start, done = done, end
    return texts
