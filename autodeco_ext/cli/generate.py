"""autodeco generate: prompt in, text out, with the temperature and top-p that the heads predict."""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import Any

from autodeco_ext.cli.arguments import (
    check_output_file,
    existing_file,
    nonempty,
    path,
    positive_int,
    seed,
    share,
    temperature,
)
from autodeco_ext.cli.errors import UserError, told_to_the_user
from autodeco_ext.cli.loading import check_checkpoint, load_checkpoint
from autodeco_ext.cli.progress import say, step

SUMMARY = "prompt in, text out"
DESCRIPTION = """\
Continue a prompt. Every token is drawn with the temperature and top-p that the heads predict for
it, unless you give your own. The text goes to stdout, everything else to stderr.
"""
EXAMPLES = """\
examples:
  autodeco generate --model heads --prompt "Why is the sky blue?"
  autodeco generate --model heads --prompt-file letter.txt --max-new-tokens 400 --seed 7
  autodeco generate --model heads --prompt "Once upon a time" --no-chat --trace trace.html
  autodeco generate --model heads --prompt "Hello" --temperature 0.7 --top-p 0.9
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=nonempty,
        required=True,
        help="AutoDeco checkpoint: a folder, or a hub repository",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="the prompt")
    prompt.add_argument("--prompt-file", type=existing_file, help="a file with the prompt (UTF-8)")
    add("--max-new-tokens", type=positive_int, default=200, help="longest text (default: 200)")
    add(
        "--seed",
        type=seed,
        help="the same seed gives the same text (default: a new one every time)",
    )
    add("--temperature", type=temperature, help="use this temperature, not the predicted one")
    add("--top-p", type=share, help="use this top-p, not the predicted one")
    add("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    add("--greedy", action="store_true", help="always take the most likely token")
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put the prompt into the tokenizer's chat template (default: if it has one)",
    )
    add(
        "--trace",
        type=path,
        metavar="FILE.html",
        help="write a page that shows temperature and top-p of every token",
    )


def run(arguments: argparse.Namespace) -> int:
    prompt = _prompt(arguments)
    if arguments.greedy and (arguments.temperature is not None or arguments.top_p is not None):
        given = "--temperature" if arguments.temperature is not None else "--top-p"
        raise UserError(f"--greedy must stand without --temperature and --top-p, got {given} too")
    if arguments.trace is not None:
        check_output_file("--trace", arguments.trace)
    check_checkpoint(arguments.model)
    with step("loading the model"):
        import torch

        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        model, tokenizer = load_checkpoint(arguments.model)
    inputs = _encode(tokenizer, prompt, arguments.chat)
    chosen_seed = (
        random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
    )
    # Temperature 0 is the argmax, and draws like any other, so that greedy text has a trace too.
    options: dict[str, Any] = (
        {"temperature": 0.0, "top_p": 1.0}
        if arguments.greedy
        else {
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
        }
    )
    started = time.perf_counter()
    with told_to_the_user(ValueError), torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=True,
            max_new_tokens=arguments.max_new_tokens,
            seed=chosen_seed,
            return_trace=True,
            streamer=_streamer(tokenizer),
            pad_token_id=_pad_token(tokenizer),
            **{name: value for name, value in options.items() if value is not None},
        )
    seconds = time.perf_counter() - started
    summary = output.trace.summary()
    count, speed = summary["tokens"], summary["tokens"] / seconds
    vocabulary = model.config.get_text_config().vocab_size
    kept = f"{summary['mean_kept']:.1f} of {vocabulary:,} tokens, left after top-p"
    facts = [
        ("model", arguments.model),
        ("length", f"{count} tokens in {seconds:.1f} s, {speed:.1f} a second"),
        ("mean temperature", _mean(summary, "temperature", options)),
        ("mean top-p", _mean(summary, "top_p", options)),
        ("mean kept", kept),
        ("seed", str(chosen_seed)),
    ]
    spoken = [facts[1][1], *(f"{name} {value}" for name, value in facts[2:])]
    say("; ".join(spoken))
    if arguments.trace is not None:
        from autodeco_ext.report.trace_page import trace_page

        with told_to_the_user(OSError):
            text = trace_page(
                prompt,
                output.trace.to_records(tokenizer)[0],
                facts,
                special_ids=tokenizer.all_special_ids,
            )
            arguments.trace.write_text(text, encoding="utf-8")
        say(f"trace: {arguments.trace}")
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        prompt, origin = arguments.prompt, "--prompt"
    else:
        file, origin = arguments.prompt_file, "--prompt-file"
        try:
            prompt = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{origin} must be UTF-8 text, got {file}") from error
        except OSError as error:
            raise UserError(f"{origin} must be readable, got {file}") from error
    if not prompt.strip():
        raise UserError(f"{origin} must not be empty, got {prompt!r}")
    return prompt


def _encode(tokenizer: Any, prompt: str, chat: bool | None) -> dict[str, Any]:
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise UserError("--chat requires a tokenizer with a chat template, and this one has none")
    if chat is None:
        chat = has_template
    if not chat:
        return _tensors(tokenizer, prompt, add_special_tokens=True)
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens itself.
    return _tensors(tokenizer, text, add_special_tokens=False)


def _tensors(tokenizer: Any, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=add_special_tokens)
    # Some tokenizers also return token types, which a decoder does not take.
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _streamer(tokenizer: Any) -> Any:
    from transformers import TextStreamer

    sys.stdout.flush()
    return TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _pad_token(tokenizer: Any) -> int:
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((one for one in ids if one is not None), 0)


def _mean(summary: dict[str, float], name: str, options: dict[str, Any]) -> str:
    origin = "predicted" if options.get(name) is None else "given"
    return f"{summary[f'mean_{name}']:.3f} ({origin})"
