# SPDX-License-Identifier: Apache-2.0
"""Shared-prefix decoding: the same answers as one prompt at a time, from one pass over the scene."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import toy_geometry, toy_model, toy_processor, toy_views

from modeling_vggt_qwen3 import generation_vggt_qwen3
from modeling_vggt_qwen3.generation_vggt_qwen3 import default_kv_bytes
from recipes.training.collator import chat_prompt


QUESTIONS = [
    "What color is the chair?",
    "Is there a lamp in the room?",
    "I am standing next to the bed. How many chairs are behind me?",
    "Where is it?",
]


def exact_model(projector_type="mlp", **kwargs):
    """In float64, where no rounding can turn a near tie; a third of the tokens end an answer, so rows end apart."""
    torch.manual_seed(0)
    model = toy_model(projector_type, **kwargs).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(3)  # answers that differ between questions
    ends = range(0, model.config.text_config.vocab_size, 6)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = list(ends), 0
    return model, toy_processor(model.config)


def make_scenes(count, seed=0):
    """Scenes of one to four views, with and without cameras, and one to four questions."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        num_views = int(rng.integers(1, 5))
        geometry = toy_geometry(num_views, number) if rng.random() < 0.6 else None
        asked = [QUESTIONS[i] for i in rng.permutation(len(QUESTIONS))[: rng.integers(1, 5)]]
        scenes.append((toy_views(num_views, number), geometry, asked))
    return scenes


def one_by_one(model, processor, views, geometry, question, **kwargs):
    inputs = processor(
        images=views or None,
        text=chat_prompt(processor, question, bool(views)),
        geometry=geometry,
        return_tensors="pt",
    )
    return model.generate(**inputs, do_sample=False, **kwargs)[0, inputs["input_ids"].shape[1] :].tolist()


def together(model, processor, scenes, batch_size=64, **kwargs):
    views, geometries, questions = (list(column) for column in zip(*scenes, strict=True))
    scene_inputs, question_ids = processor.prepare_questions(questions, views, geometries)
    return model.answer_questions(scene_inputs, question_ids, batch_size=batch_size, do_sample=False, **kwargs)


@pytest.mark.parametrize("projector_type", ["mlp", "perceiver"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_same_answers_as_one_by_one_in_50_scenes(projector_type, num_beams):
    """Catches positions that count padding, the cache of another scene or beam, rows that end together."""
    model, processor = exact_model(projector_type)
    scenes = make_scenes(50)
    kwargs = {"max_new_tokens": 5 if num_beams == 1 else 4, "num_beams": num_beams}
    answers = [
        answer
        for start in range(0, 50, 10)
        for answer in together(model, processor, scenes[start : start + 10], batch_size=7, **kwargs)
    ]
    expected = [
        [one_by_one(model, processor, views, geometry, question, **kwargs) for question in questions]
        for views, geometry, questions in scenes
    ]
    assert answers == expected
    lengths = {len(answer) for scene in answers for answer in scene}
    assert len(lengths) > 2 and len({tuple(answer) for scene in answers for answer in scene}) > 25


def decoded_sizes(model, monkeypatch):
    """Records (rows, tokens with the longest answer) of each batch that is decoded."""
    sizes, generate = [], model.generate

    def recorded(**kwargs):
        sizes.append((len(kwargs["input_ids"]), kwargs["input_ids"].shape[1] + kwargs["max_new_tokens"]))
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", recorded)
    return sizes


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("blind", [False, True])
def test_batches_are_as_large_as_their_keys_and_values_allow(blind, num_beams, monkeypatch):
    """
    Catches a batch of 64 whatever it takes: at full size that is 2 GB with a prefix of 200 tokens and 40 with one of
    4,000; beams that are not counted; and answers that depend on the batches.
    """
    model, processor = exact_model()
    scenes = make_scenes(6)
    if blind:
        scene_inputs, questions = processor.prepare_questions([asked for _, _, asked in scenes])
    else:
        scene_inputs, questions = processor.prepare_questions(
            *(list(column) for column in zip(*[(a, v, g) for v, g, a in scenes]))
        )
    text = model.config.text_config
    per_token = num_beams * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 8  # float64
    kwargs = {"do_sample": False, "max_new_tokens": 3, "num_beams": num_beams}
    sizes = decoded_sizes(model, monkeypatch)
    expected = model.answer_questions(scene_inputs, questions, **kwargs)
    count, longest = sum(map(len, questions)), max(tokens for _, tokens in sizes)
    assert [rows for rows, _ in sizes] == [count]
    for most in (1, 2, 5):
        for budget in (most * longest * per_token, (most + 1) * longest * per_token - 1):
            sizes.clear()
            assert model.answer_questions(scene_inputs, questions, kv_bytes=budget, **kwargs) == expected
            # Shorter questions are more to a batch; one more would never have fitted.
            assert sum(rows for rows, _ in sizes) == count
            assert all(rows * tokens * per_token <= budget for rows, tokens in sizes)
            for (rows, _), (_, tokens) in zip(sizes, sizes[1:]):
                assert rows >= most and (rows + 1) * tokens * per_token > budget
    # Not even one question fits: one by one. And no more than is asked for.
    for kwargs["kv_bytes"], kwargs["batch_size"], most in ((1, None, 1), (2**40, 3, 3)):
        sizes.clear()
        assert model.answer_questions(scene_inputs, questions, **kwargs) == expected
        assert [rows for rows, _ in sizes] == [most] * (count // most) + [count % most] * bool(count % most)


def test_processes_that_decode_together_have_as_many_batches(monkeypatch):
    """Catches a process under ZeRO-3 that has one batch less than the others, which wait for it for ever."""
    model, processor = exact_model()
    scene_inputs, questions = processor.prepare_questions([QUESTIONS], [toy_views(2)])
    expected = model.answer_questions(scene_inputs, questions, do_sample=False, max_new_tokens=3)
    sizes = decoded_sizes(model, monkeypatch)
    recorded = model.generate
    monkeypatch.setattr(model, "generate", lambda synced_gpus, **kwargs: recorded(**kwargs))
    others = SimpleNamespace(
        is_initialized=lambda: True, all_reduce=lambda number, _: number.fill_(3), ReduceOp=torch.distributed.ReduceOp
    )
    monkeypatch.setattr(generation_vggt_qwen3, "dist", others)
    options = {"do_sample": False, "max_new_tokens": 3, "synced_gpus": True}
    assert model.answer_questions(scene_inputs, questions, batch_size=2, **options) == expected
    assert [rows for rows, _ in sizes] == [2, 2, 2]


def test_the_default_follows_free_memory(monkeypatch):
    """Catches a default that differs from run to run by a few bytes, and one beyond what the machine has."""
    cpu = torch.device("cpu")
    assert default_kv_bytes(cpu) <= 2**32
    for available, expected in ((3000000, 2**30), (2999999, 2**30), (900000000, 2**32), (1, 512)):
        meminfo = f"MemFree: 5 kB\nMemAvailable: {available} kB\nBuffers: 1 kB"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=meminfo, **__: text)
        assert default_kv_bytes(cpu) == expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * 10**9)
    assert default_kv_bytes(torch.device("cuda", 0)) == 2**35


def test_a_scene_is_encoded_once(monkeypatch):
    """Catches a scene of 400 questions that is encoded for each of their batches."""
    model, processor = exact_model()
    calls = []
    forward = model.model.vision_model.forward
    monkeypatch.setattr(
        model.model.vision_model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    asked = [f"How many chairs are on my left? {number}" for number in range(399)] + [QUESTIONS[0]]
    views = toy_views(2)
    (answers,) = together(model, processor, [(views, None, asked)], batch_size=128, max_new_tokens=3)
    assert len(calls) == 1 and len(answers) == 400
    for number in (0, 57, 399):
        assert answers[number] == one_by_one(model, processor, views, None, asked[number], max_new_tokens=3)


def test_one_question_and_none():
    model, processor = exact_model()
    views = toy_views(3)
    answers = together(model, processor, [(views, None, [QUESTIONS[0]]), (toy_views(1), None, [])], max_new_tokens=4)
    assert answers == [[one_by_one(model, processor, views, None, QUESTIONS[0], max_new_tokens=4)], []]


def test_blind_questions():
    """Questions without images have nothing to share."""
    model, processor = exact_model()
    scene_inputs, question_ids = processor.prepare_questions([QUESTIONS[:3], QUESTIONS[3:]])
    answers = model.answer_questions(scene_inputs, question_ids, do_sample=False, max_new_tokens=4)
    expected = [one_by_one(model, processor, [], None, question, max_new_tokens=4) for question in QUESTIONS]
    assert answers[0] + answers[1] == expected


def test_bad_questions_are_refused():
    model, processor = exact_model()
    views = [toy_views(2)]
    scene_inputs, question_ids = processor.prepare_questions([QUESTIONS], views)
    with pytest.raises(ValueError, match="Got 1 scenes and lists of questions for 2"):
        model.answer_questions(scene_inputs, question_ids * 2)
    with pytest.raises(ValueError, match="no question about any of 1 scenes"):
        model.answer_questions(scene_inputs, [[]])
    with pytest.raises(ValueError, match="Question 1 of scene 0 has no tokens"):
        model.answer_questions(scene_inputs, [[[1, 2], []]])
    with pytest.raises(ValueError, match="num_return_sequences must be 1"):
        model.answer_questions(scene_inputs, question_ids, num_beams=2, num_return_sequences=2)
    with pytest.raises(ValueError, match="Got 2 lists of questions for 1 scenes"):
        processor.prepare_questions([QUESTIONS, QUESTIONS], views)
    with pytest.raises(ValueError, match="Scene 1 has no views"):
        processor.prepare_questions([QUESTIONS, QUESTIONS], [views[0], []])
    with pytest.raises(ValueError, match="Got 0 lists"):
        processor.prepare_questions([])
    model.config.text_config.max_position_embeddings = 64
    long = processor.prepare_questions([[QUESTIONS[0], "chair " * 60]], views)
    with pytest.raises(ValueError, match="Question 1 of scene 0 does not fit: a prefix of .* the context of 64"):
        model.answer_questions(*long, max_new_tokens=8)
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="full attention"):
        model.answer_questions(scene_inputs, question_ids, max_new_tokens=8)


def test_prompts_are_split_without_changing_their_tokens():
    """Catches a merge of the tokenizer across the border, and questions that hold special tokens or odd spaces."""
    model, processor = exact_model()
    views = toy_views(2)
    for question in ("", " leading", "\n\nnew lines", "What<|vision_end|> is this?"):
        scene_inputs, ((suffix,),) = processor.prepare_questions([[question]], [views])
        whole = processor(images=views, text=chat_prompt(processor, question, True), return_tensors="pt")
        assert scene_inputs["input_ids"][0].tolist() + suffix == whole["input_ids"][0].tolist()
