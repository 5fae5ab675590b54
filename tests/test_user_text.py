# SPDX-License-Identifier: Apache-2.0
"""Special tokens in what users write: text, in training, in questions, and in conversations."""

import json
import pickle
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_config, toy_model, toy_processor, toy_views, write_toy_checkpoint
from transformers import AddedToken

from modeling_vggt_qwen3.chat_template_vggt_qwen3 import CHAT_TEMPLATE_NO_THINKING
from modeling_vggt_qwen3.user_text_vggt_qwen3 import ChatPrompt
from recipes import ask
from recipes.training.collator import PackCollator


# As in Qwen3's tokenizer these are added tokens and no special ones; the last is no ASCII, and one character.
NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "☃")


def make_processor(template=None):
    processor = toy_processor(toy_config(anchor_hidden_size=32))
    tokens = [AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL]
    processor.tokenizer.add_tokens(tokens)
    if template is not None:
        processor.chat_template = template
    return processor


PROCESSOR = make_processor()
ADDED = PROCESSOR.tokenizer.added_tokens_encoder
TOKENS = sorted(ADDED)
VIEWS = toy_views(2)


def special(ids) -> Counter:
    return Counter(token for token in ids if token in ADDED.values())


def plain(ids) -> str:
    return PROCESSOR.tokenizer.decode([token for token in ids if token not in ADDED.values()])


def ids_of_collator(question, answer):
    example = {"images": VIEWS, "geometry": None, "questions": [(question, answer)], "anchors": [[0.0] * 9]}
    batch = PackCollator(PROCESSOR)([example])
    labels = batch["labels"][0]
    assert plain(labels[labels >= 0].tolist()) == answer, "what is trained is not the answer"
    assert len(batch["image_indices"]) == 2 and len(batch["geometry_indices"]) == 2
    return batch["input_ids"][0].tolist()


def ids_of_questions(question, answer):
    scene, ((ids,),) = PROCESSOR.prepare_questions([[question]], [VIEWS])
    return scene["input_ids"][0].tolist() + ids


def conversation(question, answer):
    content = [*({"type": "image", "image": view} for view in VIEWS), {"type": "text", "text": question}]
    return [
        {"role": "system", "content": answer},
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "text", "text": question[:3]}, {"type": "text", "text": question[3:]}]},
    ]


def ids_of_conversation(question, answer):
    options = {"return_dict": True, "return_tensors": "pt"}
    messages = conversation(question, answer)
    inputs = PROCESSOR.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **options)
    # Prompt first, tokens later: the prompt knows what users wrote, also after it went to another process.
    prompt = PROCESSOR.apply_chat_template(messages, add_generation_prompt=True)
    again = PROCESSOR(images=VIEWS, text=pickle.loads(pickle.dumps(prompt)), return_tensors="pt")
    assert inputs.keys() == again.keys() and all(torch.equal(inputs[key], again[key]) for key in inputs)
    batch = PROCESSOR(images=[VIEWS, VIEWS[:1]], text=[prompt, "Where?"], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"][0], inputs["input_ids"][0])
    assert batch["attention_mask"][0].all() and not batch["attention_mask"][1].all()
    return inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("ids_of", [ids_of_collator, ids_of_questions, ids_of_conversation])
@pytest.mark.parametrize("token", TOKENS)
def test_no_token_of_the_tokenizer_is_read_in_user_text(token, ids_of):
    """
    Catches a question that stops training by its placeholders or ends its own turn; tokens that are added and not special;
    ones that two pieces of a turn make together; an answer's that would be trained on.
    """
    before = ids_of("What is it?", "it is red")
    after = ids_of(f"What{token} is {token}?", f"it {token} is{token}")
    assert special(after) == special(before)
    expected = plain(before).replace("What is it?", f"What{token} is {token}?")
    assert plain(after) == expected.replace("it is red", f"it {token} is{token}")


def test_the_last_turn_is_where_it_was():
    """Catches user text that becomes markup with the template's: roles, and halves of tokens at the ends of texts."""
    messages = [{"role": "user<|im_end|>", "content": "<|im_start"}, {"role": "user", "content": "|>a<|im_end|"}]
    (ids,) = PROCESSOR.apply_chat_template(messages, tokenize=True)
    text = "user<|im_end|>\n<|im_start\nuser\n|>a<|im_end|\n"
    assert plain(ids) == text and special(ids) == {ADDED["<|im_start|>"]: 2, ADDED["<|im_end|>"]: 2}


def test_thoughts_of_earlier_answers_are_still_found():
    """Catches a template that no longer sees where thoughts end; marks of thoughts that stay in text are text."""
    processor = make_processor(CHAT_TEMPLATE_NO_THINKING)
    answers = {
        "<think>\nIt looks\n red.\n</think>\n\nred": "<think>\nIt looks\n red.\n</think>\n\nred",
        "<think>a <|im_end|></think>b <think>": "<think>\na <|im_end|>\n</think>\n\nb <think>",
        "is it <think>?": "<think>\n\n</think>\n\nis it <think>?",
    }
    for answer, written in answers.items():
        for content in (answer, [{"type": "text", "text": answer[:9]}, {"type": "text", "text": answer[9:]}]):
            messages = [{"role": "user", "content": "What <think>?"}, {"role": "assistant", "content": content}]
            prompt = processor.apply_chat_template(messages)
            assert prompt == f"<|im_start|>user\nWhat <think>?<|im_end|>\n<|im_start|>assistant\n{written}<|im_end|>\n"
            ids = processor(text=prompt).input_ids[0]
            assert processor.decode(ids) == prompt
            assert special(ids)[ADDED["<think>"]] == special(ids)[ADDED["</think>"]] == 1
            assert special(ids)[ADDED["<|im_end|>"]] == 2


# Characters that merge, spaces that merge or end a line, one that normalisation composes, and a stand-in's own.
PIECES = ["<", "|", "im_end", ">", " ", "\n", "bed", "e\u0301", "床", "🛏️", "\ue000", "'s", "12", "\0"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.lists(TEXTS | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_other_texts_have_the_tokens_that_they_had(texts):
    """Catches tokens that change where a text has a < but no token: merges over the border of a piece, spaces, composition."""
    text = "<".join(texts)
    if any(token in text for token in TOKENS):
        return
    tokenizer = PROCESSOR.tokenizer
    assert PROCESSOR.encode_text(text) == tokenizer(text, add_special_tokens=False).input_ids
    prompt = PROCESSOR.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    # Others do not pay for it.
    assert isinstance(prompt, ChatPrompt) == any(character in text for character in "<☃")
    assert prompt == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    expected = tokenizer(str(prompt), add_special_tokens=False).input_ids
    assert PROCESSOR(text=[prompt]).input_ids == [expected]
    before = tokenizer(f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert PROCESSOR.split_prompt(text)[1] == before[1:]


def test_options_of_the_tokenizer():
    """Catches a padding side, a truncation or an option that is silently left out where user text has special tokens."""
    prompts = [
        PROCESSOR.apply_chat_template([{"role": "user", "content": text}])
        for text in ("<|im_end|>", "a bed and a chair <")
    ]
    tokenizer = PROCESSOR.tokenizer
    same = [prompts[1], str(prompts[1])]
    options = [
        {"padding": "max_length", "max_length": 64, "padding_side": "right", "return_tensors": "pt"},
        {"truncation": True, "max_length": 5},
        {"padding": True, "pad_to_multiple_of": 16, "return_tensors": "pt"},
    ]
    for kwargs in options:
        inputs, expected = PROCESSOR(text=same, **kwargs), tokenizer([str(prompts[1])] * 2, **kwargs)
        assert {key: torch.as_tensor(value).tolist() for key, value in inputs.items()} == {
            key: torch.as_tensor(value).tolist() for key, value in expected.items()
        }
    with pytest.raises(ValueError, match="return_offsets_mapping: not for prompts whose user text"):
        PROCESSOR(text=prompts, return_offsets_mapping=True)


def test_such_a_question_trains_and_is_answered(tmp_path, monkeypatch, capsys):
    """Catches a step or an answer that fails by the numbers of image tokens and anchors: in the model and in recipes.ask."""
    write_toy_checkpoint(tmp_path / "model", anchor_hidden_size=32, numbers_from="head")
    model = toy_model(anchor_hidden_size=32, numbers_from="head")
    processor = toy_processor(model.config)
    question = "What is " + " ".join(processor.tokenizer.added_tokens_encoder) + "?"
    boxes = [None, [0.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.6, -0.8]]
    questions = [(question, question), (question, '{"action": "place_anchor"}')]
    batch = PackCollator(processor)([{"images": VIEWS, "geometry": None, "questions": questions, "anchors": boxes}])
    model(**batch).loss.backward()
    scene, ids = processor.prepare_questions([[question, question]], [VIEWS], anchors=[[False, True]])
    answers, anchors = model.answer_questions(scene, ids, max_new_tokens=2, return_anchors=True)
    assert len(answers[0]) == 2 and anchors[0][0] is None and anchors[0][1].shape == (9,)

    VIEWS[0].save(tmp_path / "0.png")
    command = ["recipes.ask", "--model", str(tmp_path / "model"), str(tmp_path / "0.png"), question]
    monkeypatch.setattr(sys, "argv", [*command, "--max-new-tokens", "2"])
    ask.main()
    monkeypatch.setattr(sys, "argv", [*command, "--action", "place_anchor"])
    ask.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["action"] == "place_anchor"
