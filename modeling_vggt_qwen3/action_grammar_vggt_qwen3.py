# SPDX-License-Identifier: Apache-2.0
"""Decoding under the grammar of an action: the output is the text of one, whatever the model would rather say.

What may be said is exactly what `action_text_vggt_qwen3.write_text` writes of what the schema allows: a regular language of
finite texts. xgrammar (Dong et al., arXiv 2411.15100) turns the grammar into masks of tokens. Only the length of a label is
counted here: a bound in the grammar would make xgrammar try every token of the vocabulary again at each step within a label
(150 ms for 151,669 tokens).
"""

import re
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from .action_text_vggt_qwen3 import (
    ACTION_SCHEMAS,
    LISTS_OF_ROOM,
    MAX_COORDINATE,
    MAX_LABEL_LENGTH,
    MAX_LISTED,
    MAX_OBJECTS_OF_ROOM,
    check_action_name,
    write_text,
)


# Numbers have one way to be written: no -0.00, no leading zero. A normal is never zero.
COMMON_RULES = r"""
box ::= "\"center\": [" number ", " number ", " number "], \"extent\": [" size ", " size ", " depth "], \"normal\": " normal
number ::= depth | "-" size
depth ::= "0.00" | size
size ::= "0." hundredths | [1-9] [0-9]? "." [0-9] [0-9]
hundredths ::= "0" [1-9] | [1-9] [0-9]
normal ::= "[" (turn ", " unit ", " unit | "0.00, " turn ", " unit | "0.00, 0.00, " turn) "]"
unit ::= "0.00" | turn
turn ::= "-"? ("1.00" | "0." hundredths)
label ::= "\"" ([!#-\[\]-~\u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff] | "\\" ["\\]) rest
rest ::= "\"" | [ !#-\[\]-~\u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff] rest | "\\" ["\\] rest
unlabelled ::= "{" box "}"
labelled ::= "{\"label\": " label ", " box "}"
"""


def _list(item: str, most: int) -> str:
    return rf'"[" ({item} (", " {item}){{0,{most - 1}}})? "]"'


ACTION_RULES = {
    "place_anchor": r'root ::= "{\"action\": \"place_anchor\", \"label\": " label ", " box "}"',
    "list_objects": (
        r'root ::= "{\"action\": \"list_objects\", \"label\": " label ", \"objects\": " '
        rf'{_list("unlabelled", MAX_LISTED)} "}}"'
    ),
    "describe_room": (
        r'root ::= "{\"action\": \"describe_room\"'
        + "".join(rf', \"{key}\": " {_list("unlabelled", most)} "' for key, most in LISTS_OF_ROOM.items())
        + rf', \"objects\": " {_list("labelled", MAX_OBJECTS_OF_ROOM)} "}}"'
    ),
}


def shortest_text(action: str) -> str:
    """An action that no other of its name is shorter than."""
    check_action_name(action)
    if action == "describe_room":
        return write_text(action, {key: [] for key in (*LISTS_OF_ROOM, "objects")})
    if action == "list_objects":
        return write_text(action, {"label": "a", "objects": []})
    return write_text(action, {"label": "a", "center": [0, 0, 0], "extent": [0, 0, 0], "normal": [0, 0, 1]})


def minimum_tokens(action: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """
    How many tokens the shortest such action takes as the tokenizer writes it, with the one that ends it. With fewer
    `max_new_tokens` an output is cut off. Raises ActionError if there is no such action.
    """
    return len(tokenizer(shortest_text(action), add_special_tokens=False).input_ids) + 1


def maximum_tokens(action: str) -> int:
    """
    How many tokens no such action exceeds, with the one that ends it: as if each were one byte. Raises ActionError if
    there is no such action.
    """
    check_action_name(action)
    box = {"center": [-MAX_COORDINATE] * 3, "extent": [MAX_COORDINATE] * 3, "normal": [-1, -1, -1]}
    label = {"label": "\U0001f6cb" * MAX_LABEL_LENGTH}  # four bytes each
    fields = label | box
    if action == "list_objects":
        fields = {**label, "objects": [box] * MAX_LISTED}
    if action == "describe_room":
        fields = {key: [box] * most for key, most in LISTS_OF_ROOM.items()}
        fields["objects"] = [label | box] * MAX_OBJECTS_OF_ROOM
    return len(write_text(action, fields).encode()) + 1


class ActionGrammars:
    """
    The grammars of all actions for the vocabulary of a tokenizer. Each is compiled when first asked for.

    Raises:
        ImportError: if xgrammar is not installed.
        ValueError: if the tokenizer has no token that ends a text, or cannot write the grammar.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        try:
            import xgrammar
        except ImportError as error:
            raise ImportError(
                "Constrained decoding of actions needs xgrammar, which is not installed: pip install xgrammar"
            ) from error
        if tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no EOS token: nothing could end an action.")
        self.xgrammar = xgrammar
        self.end_ids = [tokenizer.eos_token_id]
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        # A special token would vanish from a label when the output is decoded: to xgrammar, "" is no text.
        words = [""] * self.vocab_size
        for word, number in tokenizer.get_vocab().items():
            # What goes on from before a label to beyond its longest is not needed, and would evade the count.
            words[number] = "" if '"' in word and len(word) > MAX_LABEL_LENGTH else word
        for number in {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}:
            words[number] = ""
        info = xgrammar.TokenizerInfo(words, xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=self.end_ids)
        self.vocabulary = info.decoded_vocab  # bytes of each token
        self._check_vocabulary(self.vocabulary)
        self._label_masks = self._make_label_masks()
        self._masks_in_labels: dict[tuple[str, bool], torch.Tensor] = {}
        self._compiler = xgrammar.GrammarCompiler(info)
        padding = tokenizer.pad_token_id
        self.final_ids = sorted({*self.end_ids, *([] if padding is None else [padding])})

    def matcher(self, action: str):
        """An `xgrammar.GrammarMatcher` at the beginning of an action."""
        return self.xgrammar.GrammarMatcher(self._compiler.compile_grammar(ACTION_RULES[action] + COMMON_RULES))

    def fill_mask(self, bitmask: torch.Tensor, row: int, action: str, matcher, tokens: Sequence[int]):
        """
        Writes a mask of the tokens that may follow into a row.

        Args:
            matcher: After the row's tokens, within `action`.
            tokens (`Sequence[int]`): At least the last `LABEL_REACH` of them.
        """
        text = b"".join([self.vocabulary[token] for token in tokens])
        _, key, label = text.rpartition(b'"label": "')
        if not key or LABEL_BYTES.match(label)[0] != label:
            matcher.fill_next_token_bitmask(bitmask, row)
            return
        escaping = _is_escaping(label)
        # Between two characters every label may go on alike: half a millisecond per row is saved.
        state = (action, bool(label)) if not escaping and _is_text(label) else None
        if state not in self._masks_in_labels:
            matcher.fill_next_token_bitmask(bitmask, row)
            if state is not None:
                self._masks_in_labels[state] = bitmask[row].clone()
        else:
            bitmask[row] = self._masks_in_labels[state]
        bitmask[row] &= self._label_masks[escaping][MAX_LABEL_LENGTH - _count_characters(label)]

    def _make_label_masks(self) -> list[list[torch.Tensor]]:
        """Whether a token adds at most n characters to a label, per n, without and with a backslash before it."""
        masks = []
        for escaping in (False, True):
            counts = np.zeros(-(-self.vocab_size // 32) * 32, dtype=np.int64)
            for number, token in enumerate(self.vocabulary):
                counts[number] = _count_characters(LABEL_BYTES.match(token[1:] if escaping else token)[0])
            packed = [
                np.packbits(counts <= most, bitorder="little").view(np.int32) for most in range(MAX_LABEL_LENGTH + 1)
            ]
            masks.append([torch.from_numpy(mask) for mask in packed])
        return masks

    @staticmethod
    def _check_vocabulary(vocabulary: list[bytes]):
        # With each byte as a token of its own, no beginning of an action can be without an end.
        texts = "".join(map(shortest_text, ACTION_SCHEMAS)) + "0123456789-.\\"
        single = {token for token in vocabulary if len(token) == 1}
        missing = sorted({character for character in texts if character.encode() not in single})
        if missing:
            raise ValueError(
                f"The tokenizer cannot write actions: it has no token for each of {' '.join(map(repr, missing))} alone, "
                "so the grammar is unreachable."
            )
        # The rest of a character that a token begins.
        if any(not _is_text(token) for token in vocabulary) and any(
            bytes([byte]) not in single for byte in range(0x80, 0xC0)
        ):
            raise ValueError(
                "The tokenizer cannot write actions: it has tokens that end within a character, and not each byte that "
                "may follow (0x80 to 0xbf) as a token, so the grammar is unreachable."
            )


# The bytes of a label up to the quotation mark that ends it.
LABEL_BYTES = re.compile(rb'(?:[^"\\]|\\.)*\\?', re.DOTALL)
ESCAPE = re.compile(rb"\\.", re.DOTALL)
# An unfinished label with its key has no more bytes, so no more tokens: a character has up to four.
LABEL_REACH = 4 * MAX_LABEL_LENGTH + len('"label": "')


def _count_characters(label: bytes) -> int:
    """Characters that begin in a part of a label; an escape is one, at its backslash."""
    label = ESCAPE.sub(b"x", label)
    if label.isascii():
        return len(label)
    return len(label) - sum(0x80 <= byte < 0xC0 for byte in label)


def _is_escaping(label: bytes) -> bool:
    return ESCAPE.sub(b"", label).endswith(b"\\")


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


# [256, 8] what a byte of a mask adds to the scores of its eight tokens.
BYTE_MASKS = torch.tensor([[0.0 if byte >> bit & 1 else float("-inf") for bit in range(8)] for byte in range(256)])

# Compiling takes a second or two of a large vocabulary.
_GRAMMARS: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, ActionGrammars]]" = (
    weakref.WeakKeyDictionary()
)


def grammars_of(tokenizer: PreTrainedTokenizerBase) -> ActionGrammars:
    """The grammars for a tokenizer, made once; see [`ActionGrammars`]."""
    size, grammars = _GRAMMARS.get(tokenizer, (None, None))
    if size != len(tokenizer):  # tokens were added since
        grammars = ActionGrammars(tokenizer)
        _GRAMMARS[tokenizer] = len(tokenizer), grammars
    return grammars


class ActionLogitsProcessor(LogitsProcessor):
    r"""
    Leaves only tokens that continue an action. [`VggtQwen3Processor.action_logits_processor`] makes it.

    What a row may say follows from the tokens it has generated, so rows may be beams, and end at different times. EOS
    is allowed when the action is complete, and then only EOS and padding. Tokens the model has logits for and the
    tokenizer does not know are never allowed. A row that left the grammar, such as a beam of probability zero, can only
    end. Scores are changed in place; if none that is allowed is finite (another processor forbade them), they are equal.

    It may be used for one `generate` call after another: a call whose tokens do not continue the last one's begins anew.

    Args:
        grammars (`ActionGrammars`): Of the tokenizer.
        actions (`str` or `Sequence[str]`): The action of all rows, or one per row. With beams or several sequences per
            prompt, one per prompt.

    Raises:
        ActionError: if there is no such action.
        ValueError: in a call, if the rows are no multiple of the actions.
    """

    def __init__(self, grammars: ActionGrammars, actions: str | Sequence[str]):
        self.actions = [actions] if isinstance(actions, str) else list(actions)
        for action in self.actions:
            check_action_name(action)
        self._single = isinstance(actions, str)
        self._grammars = grammars
        self._starts = {action: grammars.matcher(action) for action in self.actions}  # compiles them
        self._ids = torch.empty(0, 0, dtype=torch.long)  # [B, L] of the last call
        self._prompt_length = 0
        self._row_actions = []
        self._matchers = []  # one per row; None where only the end may follow
        self._bitmask, self._mask = self._allocate(0), torch.empty(0)
        self._end_mask = self._allocate(1).zero_()[0]
        for number in grammars.final_ids:
            self._end_mask[number // 32] |= (1 << number % 32) - (1 << 32 if number % 32 == 31 else 0)

    def _allocate(self, rows: int) -> torch.Tensor:
        return self._grammars.xgrammar.allocate_token_bitmask(rows, self._grammars.vocab_size)

    def _resize(self, rows: int):
        if len(self._bitmask) != rows:
            self._bitmask = self._allocate(rows)
            self._mask = torch.empty(rows, self._bitmask.shape[1] * 4, 8)

    def for_rows(self, rows: Sequence[int]) -> "ActionLogitsProcessor":
        """A processor for a batch of these rows (numbers in the list of actions; any number where there is one for all)."""
        return ActionLogitsProcessor(
            self._grammars, self.actions[0] if self._single else [self.actions[row] for row in rows]
        )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`scores [B, logits]` with -inf for what may not follow `input_ids [B, L]`."""
        input_ids = input_ids.cpu()
        self._advance(input_ids)
        start = max(self._prompt_length, input_ids.shape[1] - LABEL_REACH)
        for row, matcher in enumerate(self._matchers):
            if matcher is None:
                self._bitmask[row] = self._end_mask
            else:
                tokens = input_ids[row, start:].tolist()
                self._grammars.fill_mask(self._bitmask, row, self._row_actions[row], matcher, tokens)
        known = min(scores.shape[1], self._grammars.vocab_size)
        mask = self._additive_mask(scores.device)[:, :known]
        scores[:, :known] += mask
        scores[:, known:] = float("-inf")
        impossible = scores.amax(dim=1) == float("-inf")
        if impossible.any():
            scores[impossible, :known] = mask[impossible]
        return scores

    def _additive_mask(self, device: torch.device) -> torch.Tensor:
        """`[B, vocabulary]` 0 or -inf. xgrammar's kernel takes 6 ms for 8 rows of 151,936 on a CPU, this and a sum half of one."""
        if device.type == "cpu":
            # Into memory of the last step: that much anew costs more than to fill it.
            np.take(BYTE_MASKS.numpy(), self._bitmask.view(torch.uint8).numpy(), 0, self._mask.numpy(), mode="clip")
            return self._mask.flatten(1)
        table = BYTE_MASKS.to(device)
        return torch.nn.functional.embedding(self._bitmask.to(device).view(torch.uint8).int(), table).flatten(1)

    def _advance(self, ids: torch.Tensor):
        """Brings the matchers to the tokens `ids [B, L]`."""
        last, prompt_length = self._ids, self._prompt_length
        self._ids = ids.clone()
        if ids.shape[1] != last.shape[1] + 1 or not self._same_prompts(ids, last):
            self._prompt_length = ids.shape[1]
            self._row_actions = self._actions_of(len(ids))
            self._matchers = [self._starts[action].fork() for action in self._row_actions]
            self._resize(len(ids))
            return
        tokens = ids[:, -1].tolist()
        if not torch.equal(ids[:, :-1], last):  # rows changed places, as beams do
            generated = last[:, prompt_length:].tolist()
            parents = [(action, *row) for action, row in zip(self._row_actions, generated, strict=True)]
            states = dict(zip(parents, self._matchers, strict=True))
            generated = ids[:, prompt_length:-1].tolist()
            self._row_actions = self._actions_of(len(ids))
            rows = [(action, *row) for action, row in zip(self._row_actions, generated, strict=True)]
            self._matchers = [self._fork(states[row]) if row in states else self._replay(row) for row in rows]
            self._resize(len(ids))
        self._matchers = [self._accept(matcher, token) for matcher, token in zip(self._matchers, tokens, strict=True)]

    def _same_prompts(self, ids: torch.Tensor, last: torch.Tensor) -> bool:
        prompts, before = ids[:, : self._prompt_length], last[:, : self._prompt_length]
        if torch.equal(prompts, before):
            return True
        return set(map(tuple, prompts.tolist())) <= set(map(tuple, before.tolist()))

    def _actions_of(self, rows: int) -> list[str]:
        if rows % len(self.actions):
            raise ValueError(f"There are {len(self.actions)} actions for {rows} rows: it must be one per prompt.")
        return [action for action in self.actions for _ in range(rows // len(self.actions))]

    @staticmethod
    def _fork(matcher):
        return None if matcher is None else matcher.fork()

    @staticmethod
    def _accept(matcher, token: int):
        if matcher is None or not matcher.accept_token(token) or matcher.is_terminated():
            return None
        return matcher

    def _replay(self, row: tuple):
        action, *tokens = row
        matcher = self._starts[action].fork()
        for token in tokens:
            matcher = self._accept(matcher, token)
        return matcher


__all__ = ["ActionGrammars", "ActionLogitsProcessor", "grammars_of", "maximum_tokens", "minimum_tokens"]
