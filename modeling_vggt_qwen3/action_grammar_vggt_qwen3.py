# SPDX-License-Identifier: Apache-2.0
"""The grammar of an action for the vocabulary of a tokenizer.

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
from transformers import PreTrainedTokenizerBase

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


__all__ = ["LABEL_REACH", "ActionGrammars", "grammars_of", "maximum_tokens", "minimum_tokens"]
