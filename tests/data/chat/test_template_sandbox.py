"""Chat templates render as in transformers, within limits on time and memory."""

import re
from pathlib import Path
from typing import Any

import pytest

from wholegpt.data.chat.sandbox import TemplateSandbox
from wholegpt.data.chat.template import ChatTemplate, Message
from wholegpt.errors import ConfigError
from wholegpt.tokenizers import byte_tokenizer

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
MESSAGES = [
    {"role": "user", "content": "Was <ist> das?\nEine Frage & 'so'"},
    {"role": "assistant", "content": "<think>hm</think> Ja."},
]
TEMPLATES = {
    "break": "{% for m in messages %}{{ m.content }}{% if loop.first %}{% break %}{% endif %}{% endfor %}",
    "continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": (
        "{% for m in messages %}\n{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
    ),
    "generation, trimmed": "a\n  {%- generation -%}  b  {%- endgeneration %}  c {{ x is defined }}",
    "tojson": "{{ messages | tojson }}",
    "tojson, indented": "{{ messages | tojson(indent=4) }}",
    "tojson, all options": (
        "{{ messages[0] | tojson(ensure_ascii=True, indent=2, separators=(',', ': '), sort_keys=True) }}"
    ),
    "tojson, by position": "{{ 'é' | tojson(true) }}",
    "dict": "{% set d = dict(a=1, b='x') %}{{ d.a }}{{ d['b'] }}{{ dict([('k', 2)]).items() | list }}",
    "namespace": "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
    "namespace of a dict": "{% set n = namespace({'a': 1}, b=2) %}{{ n.a }}{{ n.b }}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "joiner": "{% set j = joiner(', ') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
    "split": "{{ messages[1].content.split('</think>')[-1].lstrip() }}",
    "splits": "{{ 'a b  c'.split() }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a\nb'.splitlines() }}{{ 'a=b'.partition('=') }}",
    "replace": "{{ 'aXbXc'.replace('X', '--', 1) }}{{ 'aXbX' | replace('X', '') }}{{ 'aa' | replace('a', 'b', 1) }}",
    "join": "{{ ', '.join(['a', 'b']) }}{{ messages | join('|', attribute='role') }}",
    "characters": (
        "{{ 'a1'.isalnum() }}{{ 'a'.isalpha() }}{{ ' '.isspace() }}{{ 'abc'.index('b') }}{{ 'ẞ'.casefold() }}"
    ),
    "map": "{{ messages | map(attribute='role') | map('upper') | join(' ') }}",
    "sort": "{{ messages | sort(attribute='role') | map(attribute='role') | list }}{{ [2, 1, 2] | unique | list }}",
    "groupby": "{% for k, v in messages | groupby('role') %}{{ k }}{{ v | length }}{% endfor %}",
    "numbers": "{{ [1, 2, 3] | sum }}{{ [1, 2] | max }}{{ [1, 2] | min }}{{ 2.567 | round(1) }}{{ -3 | abs }}",
    "batch": "{{ range(5) | batch(2, 'x') | list }}{{ range(5) | slice(2) | map('list') | list }}",
    "indent": "{{ messages[0].content | indent(3, first=true) }}",
    "filter block": "{% filter upper %}abc{{ messages[0].role }}{% endfilter %}",
    "with": "{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "call block": "{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m(1) %}z{% endcall %}",
    "set block": "{% set x %}a{{ 1 }}{% endset %}{{ x | length }}{{ x }}",
    "tests": "{{ 'a' is string }}{{ 1 is number }}{{ [] is sequence }}{{ {} is mapping }}{{ 2 is even }}",
    "safe": "{{ ('<a>' | safe) + '<b>' }}{{ ('<a>' | safe) ~ '<b>' }}",
    "tools": "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{{ builtin_tools is defined }}",
    "lists": "{{ messages[::-1][0].role }}{{ [1, 2, 1].count(1) }}{{ (1, 2).index(2) }}{{ {'a': 1}.copy() }}",
    "else of a loop": "{% for x in [] %}a{% else %}b{% endfor %}",
    "whitespace": "  {% if true %}\n a\n  {% endif %}\n\nb\n",
    "truncate": "{{ messages[0].content | truncate(12) }}{{ messages[0].content | wordcount }}{{ 'a b' | urlencode }}",
    "attr": "{{ messages[0] | attr('role') }}{{ messages[0] | attr('__class__') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str) -> None:
    given: dict[str, Any] = {"messages": MESSAGES, "add_generation_prompt": True}
    (expected,), _ = chat_template_utils.render_jinja_template([MESSAGES], None, None, TEMPLATES[name])
    sandbox = TemplateSandbox()
    found = sandbox.from_string(TEMPLATES[name]).render({**given, "tools": None, "documents": None})
    assert found == expected


def test_strftime_now_is_the_current_date() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    (expected,), _ = chat_template_utils.render_jinja_template([MESSAGES], None, None, source)
    assert TemplateSandbox().from_string(source).render() == expected
    assert re.fullmatch(r"\d\d \w{3} \d{4}", expected)


def test_template_sees_one_time_per_conversation() -> None:
    """The template is rendered twice per conversation; both renderings must see the same time."""
    each = "<|{{ m.role }}|>{{ m.content }}<|endoftext|>"
    source = "{{ strftime_now('%S.%f') }}{% for m in messages %}" + each + "{% endfor %}"
    tokenizer = byte_tokenizer().with_special_tokens(["<|user|>", "<|assistant|>"])
    talk = [Message("user", "a"), Message("assistant", "b")]
    assert ChatTemplate(source).encode(talk, tokenizer).token_ids


PUBLISHED = {
    "Qwen3": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content\
.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' }}
            {{- reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "with a date": (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
        "{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "turns": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_chat_templates_give_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    template = ChatTemplate(PUBLISHED[name])
    tokenizer = byte_tokenizer().with_special_tokens(template.special_tokens)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs: Any = transformers_tokenizer(tmp_path / "tokenizer.json", PUBLISHED[name])
    talk = [Message("user", "Why?\n<b>"), Message("assistant", "So."), Message("user", "Oh")]
    plain = [{"role": one.role, "content": one.content} for one in talk]
    expected = theirs.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
    assert template.encode(talk, tokenizer, generation_prompt=True).token_ids == expected
    assert (
        template.encode(talk[:2], tokenizer).token_ids == theirs.apply_chat_template(plain[:2])["input_ids"]
    )


def transformers_tokenizer(path: Path, source: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path), chat_template=source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x'.replace('', 'y' * 9) }}",
        "{% set n = namespace(x='xy') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{{ n.x.replace('x', n.x) }}",
        "{% set n = namespace(x='xy') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{{ n.x | replace('x', n.x) }}",
        "{% set n = namespace(x='xy') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{{ n.x.split('x') }}",
        "{% set n = namespace(x='xy') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{{ n.x.join(range(9999)) }}",
        "{% set n = namespace(x='xy') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{{ range(9999) | map('replace', '', n.x) | list }}",
        "{{ range(3) | batch(1000000000, 'x') | list }}",
        "{{ range(3) | slice(1000000000) | list }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 5 | round(-1000000000) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ strftime_now('%Y' * 9) }}",
        "{{ namespace(_a=1) }}",
        "{{ dict(a=range(9999) | map('string') | list, b=range(9999) | list) }}",
        "{{ ''.format.__self__ }}{{ '' | format('x') }}",
        "{{ messages[0].content.encode('utf-8') }}",
        "{{ [1, 2] | random }}",
    ],
)
def test_unbounded_or_nondeterministic_templates_are_rejected(source: str) -> None:
    with pytest.raises(ConfigError, match="the chat template"):
        ChatTemplate(source)
