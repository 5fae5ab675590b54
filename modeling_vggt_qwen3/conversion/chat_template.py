# SPDX-License-Identifier: Apache-2.0
"""Which of our chat templates writes what a language model was trained on: found by rendering its own."""

from transformers import PreTrainedTokenizerBase

from modeling_vggt_qwen3.chat_template_vggt_qwen3 import CHAT_TEMPLATE, CHAT_TEMPLATE_NO_THINKING


# Line breaks and spaces at the ends tell a template that strips them.
SYSTEM = {"role": "system", "content": "Be brief. "}
QUESTION = {"role": "user", "content": " What is\n it?\n"}
ANSWER = {"role": "assistant", "content": "a bed, \nbrown "}
PROBES = (
    [QUESTION],
    [SYSTEM, QUESTION],
    [QUESTION, ANSWER],
    [QUESTION, ANSWER, QUESTION],
    [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER],
)

# Our template, what it writes after the generation prompt beyond the model's own, and what the two mean.
WAYS = (
    (CHAT_TEMPLATE, "", "answers follow the generation prompt at once"),
    (CHAT_TEMPLATE_NO_THINKING, "", "answers follow an empty think block, as in the model's mode without thinking"),
    (
        CHAT_TEMPLATE_NO_THINKING,
        "\n</think>\n\n",
        "the model always opens a think block; here it is closed, empty, before the answer, as the model's own template "
        "writes an answer without thoughts. It was trained to think first: a model without thinking is the better start",
    ),
)
NO_TEMPLATE = "the tokenizer has none: answers follow the generation prompt at once"
HINT = (
    "To convert it all the same, with prompts that the model has not seen, give a copy of its folder without the template "
    "(chat_template.jinja, or chat_template in tokenizer_config.json)."
)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], chat_template: str | None = None) -> str:
    asks = messages[-1]["role"] == "user"
    return tokenizer.apply_chat_template(
        messages, chat_template=chat_template, tokenize=False, add_generation_prompt=asks, enable_thinking=False
    )


def choose_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[str, str]:
    """
    The chat template that writes conversations as the one of `tokenizer` does with `enable_thinking=False`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): With the chat template it was released with, if any.
        name (`str`): Of the model, for messages.

    Returns:
        The template, and a sentence about it.

    Raises:
        ValueError: if the tokenizer's template cannot be rendered, or none of ours writes what it writes.
    """
    if tokenizer.chat_template is None:
        return CHAT_TEMPLATE, NO_TEMPLATE
    try:
        theirs = [_render(tokenizer, messages) for messages in PROBES]
    except Exception as error:  # a template can raise anything
        raise ValueError(
            f"The chat template of {name} cannot be rendered ({type(error).__name__}: {error}). {HINT}"
        ) from error
    different = {}
    for template, rest, meaning in WAYS:
        ours = [_render(tokenizer, messages, template) for messages in PROBES]
        expected = [
            text + rest * (messages[-1]["role"] == "user") for text, messages in zip(theirs, PROBES, strict=True)
        ]
        wrong = [pair for pair in zip(theirs, ours, expected, strict=True) if pair[1] != pair[2]]
        if not wrong:
            return template, meaning
        different[len(wrong)] = wrong[0]
    text, our_text, _ = different[min(different)]
    raise ValueError(
        f"The chat template of {name} writes {text!r}, where VGGT-Qwen3's would write {our_text!r}. {HINT}"
    )


__all__ = ["choose_chat_template"]
