# SPDX-License-Identifier: Apache-2.0
"""The chat templates: which of them a checkpoint has follows from its language model."""

# The text of a turn: one vision block per conversation, before the text; the processor expands its placeholder to all views.
_CONTENT = """\
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- if message.content | selectattr('type', 'equalto', 'image') | list %}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
        {%- endif %}
        {%- for item in message.content if item.type == 'text' %}
            {{- item.text }}
        {%- endfor %}
    {%- endif %}
"""

# Of a language model whose answers follow the generation prompt at once.
CHAT_TEMPLATE = (
    """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
"""
    + _CONTENT
    + """\
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)

# Of a language model that can think, and does not after an empty think block. As such models were trained, only the answer
# to the last question has a block; one with thoughts in it stays in that answer, and is dropped from earlier ones.
CHAT_TEMPLATE_NO_THINKING = (
    """\
{%- set turns = namespace(last_question=messages | length) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set turns.last_question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content %}
"""
    + _CONTENT
    + """\
    {%- endset %}
    {%- if message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > turns.last_question and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
            {%- set content = content.lstrip('\\n') %}
        {%- endif %}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
"""
)

__all__ = ["CHAT_TEMPLATE", "CHAT_TEMPLATE_NO_THINKING"]
