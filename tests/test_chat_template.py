# SPDX-License-Identifier: Apache-2.0
"""Text that our chat templates write, against what the language model's own writes without thinking."""

import json

import pytest
from chat_templates import DIRECT, HYBRID, THINKING
from test_convert import FIXTURES, OPTIONS, write_text_model
from test_shared_prefix import exact_model, one_by_one, together
from toys import toy_config, toy_views
from transformers import AddedToken, GenerationConfig

from modeling_vggt_qwen3 import VggtQwen3Processor
from modeling_vggt_qwen3 import convert_vggt_qwen3_to_hf as converter
from modeling_vggt_qwen3.chat_template_vggt_qwen3 import CHAT_TEMPLATE, CHAT_TEMPLATE_NO_THINKING
from modeling_vggt_qwen3.conversion.chat_template import choose_chat_template
from recipes.training.collator import PackCollator, chat_prompt


EMPTY_THINK = "<think>\n\n</think>\n\n"
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTIONS = [{"role": "user", "content": text} for text in ("What color is the bed?\n", " And\nthe chair? ", "Where?")]
ANSWERS = [{"role": "assistant", "content": text} for text in ("red", "\n\nblue, \nor cyan ", "a bed")]
THOUGHT = {"role": "assistant", "content": "<think>\nIt looks\n red.\n</think>\n\nred"}
CONVERSATIONS = [
    QUESTIONS[:1],
    [SYSTEM, QUESTIONS[1]],
    [QUESTIONS[0], ANSWERS[0]],
    [SYSTEM, QUESTIONS[0], ANSWERS[1]],
    [QUESTIONS[0], ANSWERS[1], QUESTIONS[1]],
    [SYSTEM, QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1], QUESTIONS[2]],
    [QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1], QUESTIONS[2], ANSWERS[2]],
    [QUESTIONS[0], ANSWERS[0], ANSWERS[2]],
    [QUESTIONS[0], SYSTEM, QUESTIONS[1]],
    [QUESTIONS[0], THOUGHT],
    [QUESTIONS[0], THOUGHT, QUESTIONS[1]],
    [QUESTIONS[0], THOUGHT, ANSWERS[0]],
    [SYSTEM, ANSWERS[0]],
]
SOURCES = {"direct": DIRECT, "hybrid": HYBRID, "thinking": THINKING}


def source_tokenizer(template: str | None, think_tokens: bool = True):
    """A tokenizer as a language model was released with; `<think>` is one token and no special one, as in Qwen3's."""
    tokenizer = converter.create_tiny_tokenizer()
    if think_tokens:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return tokenizer


def processor_of(source: str) -> VggtQwen3Processor:
    """The processor that the converter makes for a language model with this chat template."""
    tokenizer = source_tokenizer(SOURCES[source])
    template, _ = choose_chat_template(tokenizer, source)
    tokenizer.chat_template = None
    return converter.create_processor(toy_config(), tokenizer, template)


def their_text(source: str, messages: list[dict]) -> str:
    """What the source's own template writes; where that opens a think block before the answer, with its end."""
    asks = messages[-1]["role"] != "assistant"
    text = source_tokenizer(SOURCES[source]).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=asks, enable_thinking=False
    )
    if source == "thinking" and asks:
        assert text.endswith("<|im_start|>assistant\n<think>\n")
        text += "\n</think>\n\n"
    return text


@pytest.mark.parametrize("think_tokens", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_conversations_have_the_tokens_of_the_sources_template(source, think_tokens):
    """Catches a prompt that the language model was not trained on: an empty think block too few, too many or in the wrong turn."""
    tokenizer = source_tokenizer(SOURCES[source], think_tokens)
    template, _ = choose_chat_template(tokenizer, source)
    for messages in CONVERSATIONS:
        expected = their_text(source, messages)
        asks = messages[-1]["role"] != "assistant"
        ours = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=asks
        )
        assert ours == expected
        assert tokenizer(ours).input_ids == tokenizer(expected).input_ids
    assert (EMPTY_THINK in their_text(source, CONVERSATIONS[0])) == (source != "direct")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("with_images", [True, False])
def test_training_sequences_are_finished_conversations(source, with_images):
    """Catches answers trained after another prompt than the one they are generated from, or with another end of turn."""
    processor = processor_of(source)
    question, answer = "What color is the bed?", "red"
    views = toy_views(2) if with_images else []
    batch = PackCollator(processor)([{"images": views, "geometry": None, "questions": [(question, answer)]}])
    block = f"<|vision_start|>{processor.expand_views(2, 28, 28)}<|vision_end|>" if with_images else ""
    asked = {"role": "user", "content": block + question}
    expected = their_text(source, [asked, {"role": "assistant", "content": answer}]).removesuffix("\n")
    assert processor.decode(batch["input_ids"][0]) == expected
    assert batch["input_ids"][0].tolist() == processor.tokenizer(expected).input_ids
    # All but the answer and its end is the prompt.
    labels = batch["labels"][0] != -100
    prompt = processor.tokenizer(their_text(source, [asked])).input_ids
    assert batch["input_ids"][0][~labels].tolist() == prompt
    assert processor.decode(batch["labels"][0][labels]) == f"{answer}<|im_end|>"


def test_place_is_asked_for_after_the_empty_think_block():
    """Catches `<|anchor|>` inside or before the block: the model would read its own thoughts there."""
    processor = processor_of("hybrid")
    anchor = processor.add_anchor_token()
    prefix, ids = processor.split_prompt("Place an anchor on the bed.", anchor=True)
    assert prefix == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    assert ids[-1] == anchor
    assert processor.decode(ids[:-1]).endswith(f"<|im_end|>\n<|im_start|>assistant\n{EMPTY_THINK}")


def test_shared_prefix_decoding_goes_on_after_the_empty_think_block():
    """Catches answers to the questions of a scene that are generated from another prompt than an answer alone."""
    processor, (model, _) = processor_of("hybrid"), exact_model("mlp")
    views = toy_views(2)
    assert chat_prompt(processor, "Where?", True).endswith(EMPTY_THINK)
    answers = together(model, processor, [(views, None, ["What color is the bed?", "Where?"])], max_new_tokens=5)
    for question, answer in zip(["What color is the bed?", "Where?"], answers[0], strict=True):
        assert answer == one_by_one(model, processor, views, None, question, max_new_tokens=5)


@pytest.mark.parametrize("source", SOURCES)
def test_converter_chooses_by_the_sources_template(source, tmp_path, capsys):
    """
    Catches one template for every language model; a base model's end of document as the end of answers; and a choice by name:
    each source here is called the same.
    """
    folder = write_text_model(tmp_path / "text")
    tokenizer = source_tokenizer(SOURCES[source])
    tokenizer.eos_token = "<|endoftext|>"  # as a base model's
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    GenerationConfig(eos_token_id=end).save_pretrained(folder)
    converter.convert_released(str(FIXTURES / "tiny_weights.safetensors"), str(folder), tmp_path / "model", **OPTIONS)
    expected = CHAT_TEMPLATE if source == "direct" else CHAT_TEMPLATE_NO_THINKING
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == expected
    processor = VggtQwen3Processor.from_pretrained(tmp_path / "model")
    assert processor.chat_template == processor.tokenizer.chat_template == expected
    turn = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert processor.tokenizer.eos_token_id == turn
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [turn, end]
    said = {"direct": "at once", "hybrid": "without thinking", "thinking": "trained to think first"}
    assert said[source] in capsys.readouterr().out


def test_a_source_without_a_template_gets_the_plain_one():
    template, meaning = choose_chat_template(source_tokenizer(None), "text")
    assert template == CHAT_TEMPLATE and "has none" in meaning


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + DIRECT,
            r"writes '<\|im_start\|>system\\nYou help.* VGGT-Qwen3's would write '<\|im_start\|>user",
        ),
        (DIRECT.replace("turn.content", "turn.content | trim"), r"writes '<\|im_start\|>user\\nWhat is\\n it\?<"),
        (DIRECT.replace("assistant\n", "assistant\n<answer>"), "assistant.n<answer>"),
        # The last answer without the block that the prompt has.
        (HYBRID.replace("loop.last or ", ""), "where VGGT-Qwen3's would write"),
        ("{{ raise_exception('no system') }}", "cannot be rendered .*no system"),
        ("{% for turn in messages %}", "cannot be rendered"),
    ],
)
def test_templates_that_ours_cannot_follow_are_refused(template, message):
    """Catches a model converted in silence to prompts that it has never seen."""
    with pytest.raises(ValueError, match=f"The chat template of some/model .*{message}.*without the template"):
        choose_chat_template(source_tokenizer(template), "some/model")
