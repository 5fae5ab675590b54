# SPDX-License-Identifier: Apache-2.0
"""Decoding under the grammar of an action: the output is the text of one, whatever the model would rather say."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from .action_grammar_vggt_qwen3 import LABEL_REACH, ActionGrammars
from .action_text_vggt_qwen3 import check_action_name


# [256, 8] what a byte of a mask adds to the scores of its eight tokens.
BYTE_MASKS = torch.tensor([[0.0 if byte >> bit & 1 else float("-inf") for bit in range(8)] for byte in range(256)])

FEW_WORDS = 128  # of 32 tokens each, per row


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
        # Outside labels few tokens may follow: they are kept, which takes less than to go through all.
        rows, words = self._bitmask.numpy().nonzero()
        if len(rows) < FEW_WORDS * len(scores):
            pairs, bits = np.nonzero(self._bitmask.numpy()[rows, words][:, None] >> np.arange(32) & 1)
            rows, tokens = rows[pairs], 32 * words[pairs] + bits
            kept = torch.from_numpy(np.stack([rows, tokens])[:, tokens < known]).to(scores.device).unbind()
            values = scores[kept]
            scores.fill_(float("-inf"))
            scores[kept] = values
        else:
            scores[:, :known] += self._additive_mask(scores.device)[:, :known]
            scores[:, known:] = float("-inf")
        impossible = scores.amax(dim=1) == float("-inf")
        if impossible.any():
            scores[impossible, :known] = self._additive_mask(scores.device)[impossible, :known].to(scores.dtype)
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


__all__ = ["ActionLogitsProcessor"]
