# SPDX-License-Identifier: Apache-2.0
"""
Small chat templates that write what those of released language models do, for text alone: Qwen3-4B-Instruct-2507 (`DIRECT`),
Qwen3-4B (`HYBRID`), Qwen3-4B-Thinking-2507 (`THINKING`).
"""

DIRECT = """\
{% for turn in messages %}<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Thoughts are dropped from answers before the last question; after it the last answer has a block, if only an empty one.
_WITH_THOUGHTS = """\
{% set last = namespace(question=messages | length) %}
{% for turn in messages %}{% if turn.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}
{% for turn in messages %}
{% set parts = turn.content.split('</think>') if turn.role == 'assistant' else [turn.content] %}
{% set thoughts = parts[0].rstrip('\n').split('<think>')[-1].lstrip('\n') if parts | length > 1 else '' %}
{% set said = parts[-1].lstrip('\n') if parts | length > 1 else turn.content %}
{% if turn.role == 'assistant' and loop.index0 > last.question and (loop.last or thoughts) %}
{{ '<|im_start|>assistant\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') + '<|im_end|>\n' }}
{%- else %}
{{ '<|im_start|>' + turn.role + '\n' + said + '<|im_end|>\n' }}
{%- endif %}
{% endfor %}
"""
HYBRID = (
    _WITH_THOUGHTS
    + """\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
)
THINKING = _WITH_THOUGHTS + "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
