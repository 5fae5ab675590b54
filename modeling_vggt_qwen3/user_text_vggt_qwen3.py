# SPDX-License-Identifier: Apache-2.0
"""User text in prompts: characters, never markup. What looks like a special token there has the tokens of its characters."""

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase


# Items of a turn that are no text.
MEDIA = ("image", "image_url", "video", "audio")
# Private use areas first: a stand-in is a character that no text of the conversation has.
STAND_INS = range(0xE000, 0x110000)
END_OF_THOUGHTS = "</think>"
# Of a tokenizer's options those that prompts with user text take. Qwen3 has no special tokens to add.
OF_PADDING = ("padding", "max_length", "pad_to_multiple_of", "padding_side", "return_attention_mask", "return_tensors")
OF_LENGTH = ("truncation", "add_special_tokens", "verbose")


class ChatPrompt(str):
    """
    A prompt that knows which of its characters users wrote: the processor reads no special tokens in those. What string
    methods make of it is a plain `str`, of which all is read.

    Args:
        hidden (`str`): The prompt with a stand-in for each character of user text that a token of the tokenizer's own
            could begin with.
        characters (`dict[int, int]`): What the stand-ins stand for, for `str.translate`.
    """

    def __new__(cls, hidden: str, characters: dict[int, int]):
        prompt = super().__new__(cls, hidden.translate(characters))
        prompt.hidden, prompt.characters = hidden, characters
        return prompt

    def __getnewargs__(self):
        return self.hidden, self.characters


def markup_of(prompt: str) -> str:
    """A prompt in which no user text looks like markup."""
    return prompt.hidden if isinstance(prompt, ChatPrompt) else prompt


def with_markup(prompt: str, markup: str) -> str:
    """`prompt`, of whose `markup_of` something was changed."""
    return ChatPrompt(markup, prompt.characters) if isinstance(prompt, ChatPrompt) else markup


def first_characters(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """What the added tokens begin with, special (`<|im_end|>`) or not (`<think>`): text without these has none of them."""
    return frozenset(token[0] for token in tokenizer.added_tokens_encoder)


def hide_user_text(messages: Any, first: Set[str], chat_template: str) -> tuple[Any, dict[int, int] | None]:
    """
    Conversations whose strings have no added token, nor can make one where a template joins them, and what the stand-ins
    stand for; None (and the conversations as they are) if there is nothing to hide.

    A template that reads thoughts (`<think>...</think>`) in answers finds them as before, and writes their tokens.
    """
    # Found fast, since most texts of the training data have none.
    if first.isdisjoint("".join(_strings(messages))):
        return messages, None
    used = set(chat_template).union(*_strings(messages))
    free = (code for code in STAND_INS if chr(code) not in used)
    stand_ins = {ord(character): next(free) for character in sorted(first & used)}
    hidden = _hide(messages, stand_ins, END_OF_THOUGHTS in chat_template)
    return hidden, {stand_in: character for character, stand_in in stand_ins.items()}


def _strings(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        if part.get("type") not in MEDIA:
            for value in part.values():
                yield from _strings(value)
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _strings(item)


def _hide(part: Any, stand_ins: dict[int, int], reads_thoughts: bool) -> Any:
    if isinstance(part, str):
        return part.translate(stand_ins)
    if isinstance(part, (list, tuple)):
        return [_hide(item, stand_ins, reads_thoughts) for item in part]
    if not isinstance(part, dict) or part.get("type") in MEDIA:
        return part
    hidden = {key: _hide(value, stand_ins, reads_thoughts) for key, value in part.items()}
    if reads_thoughts and part.get("role") == "assistant":
        hidden["content"] = _hide_answer(part.get("content"), stand_ins)
    return hidden


def _hide_answer(content: Any, stand_ins: dict[int, int]) -> Any:
    """As `_hide`, but for the marks of thoughts up to the last end of one: a template removes them. Later ones stay text."""
    if isinstance(content, str):
        return _hide_answer([{"type": "text", "text": content}], stand_ins)[0]["text"]
    if not isinstance(content, list):
        return content
    items, ended = [], False
    for item in reversed(content):
        text = item.get("text") if isinstance(item, dict) and item.get("type") == "text" else None
        if not isinstance(text, str):
            items.append(_hide(item, stand_ins, False))
            continue
        thoughts, mark, rest = (text, "", "") if ended else text.rpartition(END_OF_THOUGHTS)
        ended = ended or bool(mark)
        parts = [
            part if number % 2 else part.translate(stand_ins)
            for number, part in enumerate(re.split("(</?think>)", thoughts + mark))
        ]
        items.append(item | {"text": "".join(parts) + rest.translate(stand_ins)})
    return items[::-1]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, first: Set[str]) -> list[int]:
    """The tokens of user text alone, of which none is an added token."""
    if first.isdisjoint(text):
        return tokenizer(text, add_special_tokens=False).input_ids
    # tokenizers' `encode_special_tokens` leaves out the special ones alone, not those like <think>.
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = (
        [text] if backend.pre_tokenizer is None else [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    )
    return [token.id for word in words for token in backend.model.tokenize(word)]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, first: Set[str]) -> list[int]:
    """The tokens of a prompt: of a [`ChatPrompt`] its own special tokens, and between them those of `encode_text`."""
    if not isinstance(prompt, ChatPrompt):
        return tokenizer(prompt, add_special_tokens=False).input_ids
    encoded = tokenizer(prompt.hidden, add_special_tokens=False, return_offsets_mapping=True)
    added, ids, end = set(tokenizer.added_tokens_encoder.values()), [], 0
    # Text is never merged across a special token, so that the parts between them have the tokens that they had together.
    for token, (start, next_start) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        if token in added:
            ids += encode_text(tokenizer, prompt[end:start], first)
            ids.append(token)
            end = next_start
    return ids + encode_text(tokenizer, prompt[end:], first)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], first: Set[str], options: dict[str, Any]
) -> BatchEncoding:
    """As `tokenizer(prompts, **options)`, with the tokens of `encode_prompt`. Raises ValueError for an option it lacks."""
    if others := sorted(name for name, value in options.items() if value and name not in (*OF_PADDING, *OF_LENGTH)):
        raise ValueError(f"{', '.join(others)}: not for prompts whose user text may have special tokens.")
    ids = [encode_prompt(tokenizer, prompt, first) for prompt in prompts]
    if options.get("truncation") and options.get("max_length"):
        left = tokenizer.truncation_side == "left"
        ids = [row[-options["max_length"] :] if left else row[: options["max_length"]] for row in ids]
    padding = {name: options[name] for name in OF_PADDING if name in options}
    return tokenizer.pad({"input_ids": ids}, **{"padding": False} | padding)


__all__ = [
    "ChatPrompt",
    "encode_prompt",
    "encode_prompts",
    "encode_text",
    "first_characters",
    "hide_user_text",
    "markup_of",
    "with_markup",
]
