"""Detokenization of published text formats, and its inverse."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.evaluation import Published, plain_text

EXAMPLES = {
    Published.wikitext: [
        (" = = Early life = = \n", "== Early life ==\n"),
        (" He wrote 1 @,@ 000 self @-@ made plays ; some ( 3 @.@ 5 % ) lived . \n", None),
        (' It was " red " , he said , and " the players \' names " too . \n', None),
        (" It 's the cat 's , they 're sure : it isn 't . \n", None),
    ],
    Published.ptb: [
        (" mr. vinken is n't 61 years old , he 's <unk> \n", "mr. vinken isn't 61 years old, he's <unk>\n"),
        (" it cost $ N million -lrb- net -rrb- , the investors ' money \n", None),
    ],
}
PLAIN = {
    EXAMPLES[Published.wikitext][1][0]: "He wrote 1,000 self-made plays; some (3.5%) lived.\n",
    EXAMPLES[Published.wikitext][2][0]: 'It was "red", he said, and "the players\' names" too.\n',
    EXAMPLES[Published.wikitext][3][0]: "It's the cat's, they're sure: it isn't.\n",
    EXAMPLES[Published.ptb][1][0]: "it cost $N million (net), the investors' money\n",
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_examples(form: Published) -> None:
    for published, expected in EXAMPLES[form]:
        plain = plain_text(published, form)
        assert plain.text == (expected or PLAIN[published])
        assert plain.restored() == published


@pytest.mark.parametrize("form", Published)
@given(text=st.text(alphabet=" \n=@,.-'\"()sntea$%Nlrb", max_size=80))
def test_detokenization_is_lossless(form: Published, text: str) -> None:
    plain = plain_text(text, form)
    assert plain.restored() == text


def test_wikitext(shared_data: Path) -> None:
    text = (shared_data / "wikitext2-valid.txt").read_text(encoding="utf-8")
    plain = plain_text(text, Published.wikitext)
    assert plain.restored() == text
    assert plain.words == 217_646  # the tokens of the published validation set
    for artefact in (" @-@ ", " @,@ ", " @.@ ", " , ", " ; ", "( ", " )"):
        assert plain.text.count(artefact) <= 0.01 * text.count(artefact), artefact
