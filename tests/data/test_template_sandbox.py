"""Chat templates are rendered as transformers renders them, within limits."""

import re
from typing import Any

import pytest

from wholegpt.data.chat_template import ChatTemplate, Message
from wholegpt.data.template_sandbox import TemplateSandbox
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
def test_it_renders_as_in_transformers(name: str) -> None:
    given: dict[str, Any] = {"messages": MESSAGES, "add_generation_prompt": True}
    (expected,), _ = chat_template_utils.render_jinja_template([MESSAGES], None, None, TEMPLATES[name])
    sandbox = TemplateSandbox()
    found = sandbox.from_string(TEMPLATES[name]).render({**given, "tools": None, "documents": None})
    assert found == expected


def test_the_date_is_the_present_one_as_in_transformers() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    (expected,), _ = chat_template_utils.render_jinja_template([MESSAGES], None, None, source)
    assert TemplateSandbox().from_string(source).render() == expected
    assert re.fullmatch(r"\d\d \w{3} \d{4}", expected)


def test_a_template_with_the_time_is_read_once_for_a_conversation() -> None:
    """It is rendered twice, and both must be of the same instant, whatever the clock says."""
    each = "<|{{ m.role }}|>{{ m.content }}<|endoftext|>"
    source = "{{ strftime_now('%S.%f') }}{% for m in messages %}" + each + "{% endfor %}"
    tokenizer = byte_tokenizer().with_special_tokens(["<|user|>", "<|assistant|>"])
    talk = [Message("user", "a"), Message("assistant", "b")]
    assert ChatTemplate(source).encode(talk, tokenizer).token_ids


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
def test_what_could_take_unlimited_memory_or_changes_each_time_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="the chat template"):
        ChatTemplate(source)
