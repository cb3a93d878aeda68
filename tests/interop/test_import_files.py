"""Files beside the weights of a transformers model: vocabulary, chat template, end tokens, and invalid folders."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tests.helpers import Fails
from tests.interop.models import tokenizer_of
from tests.interop.test_published_defaults import GPT, SMALL, edit, logits_of, saved
from wholegpt.checkpoint import load_metadata, load_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.chat.template import Message
from wholegpt.generation import encode_prompt
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.runs.load import load
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, open_tokenizer, train_bpe

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)
TEXTS = ["the cat sat on the mat, and the dog sat on the log"] * 4
CHAT_ML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def gpt2(folder: Path, vocab_size: int, **changes: Any) -> Any:
    return saved(
        transformers.GPT2Config(**{**GPT, "vocab_size": vocab_size, "eos_token_id": None, **changes}), folder
    )


def vocabulary_files(folder: Path, vocab_size: int) -> Any:
    """Write ``vocab.json`` and ``merges.txt`` without end-of-text, and return the tokenizer of transformers."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    content = json.loads(train_bpe(TEXTS, vocab_size + 1).to_json())["model"]
    assert len(content["vocab"]) == vocab_size
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    return content


def test_vocabulary_without_end_of_text_is_not_extended(tmp_path: Path) -> None:
    gpt2(tmp_path, 270)
    vocabulary_files(tmp_path, 270)
    ours, theirs = logits_of(tmp_path)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    tokenizer = load_model(tmp_path / "ours").tokenizer
    assert tokenizer.vocab_size == 270 and not tokenizer.has_end_of_text
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"]
    assert tokenizer.encode(TEXTS[0]) == expected


def test_merges_without_a_version_line_keep_their_first_line(tmp_path: Path) -> None:
    vocabulary_files(tmp_path, 270)
    expected = open_tokenizer(tmp_path).encode(TEXTS[0])
    first, *merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert first.startswith("#version")
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    assert open_tokenizer(tmp_path).encode(TEXTS[0]) == expected


def test_added_tokens_in_other_files(tmp_path: Path) -> None:
    """``added_tokens.json`` and ``tokenizer_config.json``, as read by transformers."""
    vocabulary_files(tmp_path, 270)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 271, "<tool>": 270}))
    names = {"eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
    ours, theirs = open_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == 272
    text = "the cat<tool> sat</s>the"
    assert ours.encode(text, allow_special=True) == theirs(text)["input_ids"]
    assert (ours.id_of("<tool>"), ours.id_of("</s>")) == (270, 271)


def test_vocabulary_files_of_a_qwen3_model(tmp_path: Path) -> None:
    """They look like GPT-2's, but the word split differs."""
    saved(transformers.Qwen3Config(**{**SMALL["qwen3"], "vocab_size": 270}), tmp_path)
    vocabulary_files(tmp_path, 270)
    ours, theirs = logits_of(tmp_path)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    tokenizer, text = load_model(tmp_path / "ours").tokenizer, "The cat's on the mat 1234\n\n  cafe\u0301"
    assert tokenizer.encode(text) == transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]


def test_add_prefix_space_is_rejected(tmp_path: Path, fails: Fails) -> None:
    gpt2(tmp_path, 270)
    vocabulary_files(tmp_path, 270)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    assert "add_prefix_space is true" in fails("import", tmp_path, "--out", tmp_path / "ours")


def test_added_token_with_a_wrong_id_is_rejected(tmp_path: Path, fails: Fails) -> None:
    gpt2(tmp_path, 300)
    vocabulary_files(tmp_path, 270)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 299}))
    assert "gives '</s>' the id 299; it is 270" in fails("import", tmp_path, "--out", tmp_path / "ours")


def test_padding_tokens_are_never_generated(tmp_path: Path) -> None:
    theirs = gpt2(tmp_path, 448)
    tokenizer_of(400).save(tmp_path / "tokenizer.json")
    with torch.no_grad():  # unused rows would always have the highest logits
        theirs.transformer.wte.weight[400:] = 0.0
        theirs.transformer.wte.weight[[401, 447]] = 9 * theirs.transformer.wte.weight[5]
    theirs.save_pretrained(tmp_path)
    ours, expected = logits_of(tmp_path)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
    assert int((ours.argmax(-1) >= 400).sum()) > 0
    lm = load(tmp_path / "ours", console=QUIET)
    prompt = lm.tokenizer.decode([7, 9])
    completion = lm.generate(prompt, max_tokens=20, temperature=0.0)
    assert max(completion.token_ids) < 400
    prompt_ids = torch.tensor([lm.tokenizer.encode(prompt)])
    settings = {"do_sample": False, "max_new_tokens": 20, "suppress_tokens": list(range(400, 448))}
    assert completion.token_ids == theirs.generate(prompt_ids, **settings)[0, prompt_ids.shape[1] :].tolist()
    sampled = lm.generate(prompt, max_tokens=20, temperature=5.0, seed=1)
    assert max(sampled.token_ids) < 400
    (beam, *_) = lm.beam_search(prompt, beams=2, max_tokens=5)
    assert max(beam.token_ids) < 400
    export = export_model(tmp_path / "ours", "huggingface", tmp_path / "again", console=QUIET).path
    assert json.loads((export / "generation_config.json").read_text())["suppress_tokens"] == list(
        range(400, 448)
    )
    again = import_model(export, tmp_path / "back", console=QUIET)
    assert load(again, console=QUIET).generate(prompt, max_tokens=20, temperature=0.0).text == completion.text


def test_tokenizer_larger_than_the_model_is_rejected(tmp_path: Path, fails: Fails) -> None:
    gpt2(tmp_path, 400)
    tokenizer_of(400).with_special_tokens(["[PAD]", "<x>"]).save(tmp_path / "tokenizer.json")
    message = fails("import", tmp_path, "--out", tmp_path / "ours")
    assert "ids 400 to 401 ('[PAD]', '<x>') have no row in the model" in message
    assert "resize_token_embeddings(402)" in message and "--tokenizer" in message


@pytest.mark.parametrize("where", ["config", "generation config", "list"])
def test_generation_stops_at_the_end_tokens_of_transformers(where: str, tmp_path: Path) -> None:
    theirs = gpt2(tmp_path, 300)
    tokenizer_of(300).save(tmp_path / "tokenizer.json")
    prompt_ids = [7, 9, 11]
    free = theirs.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=25)[0, 3:].tolist()
    ends = [free[12], free[9], 10**6] if where == "list" else free[9]
    if where == "config":
        (tmp_path / "generation_config.json").unlink()
        edit(tmp_path, eos_token_id=ends)
    else:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        edit(tmp_path, eos_token_id=1)  # generation_config.json takes precedence
    reopened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = reopened.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=25)[
        0, 3:
    ].tolist()
    lm = load(import_model(tmp_path, tmp_path / "ours", console=QUIET), console=QUIET)
    completion = lm.generate(lm.tokenizer.decode(prompt_ids), max_tokens=25, temperature=0.0)
    assert [*completion.token_ids, expected[-1]] == expected and len(expected) < 25
    assert completion.finish_reason == "end_of_text"
    export = export_model(tmp_path / "ours", "huggingface", tmp_path / "again", console=QUIET).path
    again = import_model(export, tmp_path / "back", console=QUIET)
    assert load_metadata(again).end_token_ids and load_model(again).tokenizer.end_ids == lm.tokenizer.end_ids


def test_invalid_end_tokens(tmp_path: Path, fails: Fails) -> None:
    gpt2(tmp_path, 300, eos_token_id=50_256)
    tokenizer_of(300).save(tmp_path / "tokenizer.json")
    tokenizer = load_model(import_model(tmp_path, tmp_path / "ours", console=QUIET)).tokenizer
    assert tokenizer.end_ids == {tokenizer.end_of_text_id}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    assert "eos_token_id is '</s>'; expected a token id" in fails("import", tmp_path, "--out", tmp_path / "b")


def test_prefix_token_of_the_post_processor(tmp_path: Path) -> None:
    """transformers inserts it before every prompt."""
    theirs = gpt2(tmp_path, 300)
    library = tokenizers.Tokenizer.from_str(tokenizer_of(300).to_json())
    begin = ("<|endoftext|>", library.token_to_id("<|endoftext|>"))
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin[0]} $A", pair=f"{begin[0]} $A $B", special_tokens=[begin]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("bab", return_tensors="pt")["input_ids"]
    assert prompt[0, 0] == begin[1]
    expected = theirs.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :].tolist()
    lm = load(import_model(tmp_path, tmp_path / "ours", console=QUIET), console=QUIET)
    assert lm.generate("bab", max_tokens=12, temperature=0.0).token_ids == expected
    assert encode_prompt(lm.model, lm.tokenizer, "", "bab", False, QUIET) == prompt[0].tolist()


def chat_folder(folder: Path) -> Path:
    saved(transformers.GPT2Config(**{**GPT, "vocab_size": 262}), folder)
    names = ["<|im_start|>", "<|im_end|>", "<|begin|>", "</s>", "<start_of_turn>"]
    byte_tokenizer().with_special_tokens(names).save(folder / "tokenizer.json")
    return folder


FORMS: dict[str, dict[str, Any]] = {
    "text": {"tokenizer_config.json": {"chat_template": CHAT_ML}},
    "named": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "tool_use", "template": "x"},
                {"name": "default", "template": CHAT_ML},
            ]
        }
    },
    "file": {"chat_template.jinja": CHAT_ML, "tokenizer_config.json": {"chat_template": "other"}},
    "older file": {"chat_template.json": {"chat_template": CHAT_ML}},
    "beginning": {
        "tokenizer_config.json": {"chat_template": "{{ bos_token }}" + CHAT_ML, "bos_token": "<|begin|>"}
    },
    "end of another form": {
        "tokenizer_config.json": {
            "chat_template": CHAT_ML.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<start_of_turn>")
        }
    },
    "end": {
        "tokenizer_config.json": {
            "chat_template": CHAT_ML.replace("'<|im_end|>'", "eos_token"),
            "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        }
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_chat_template_is_read_from_the_files_that_transformers_reads(form: str, tmp_path: Path) -> None:
    chat_folder(tmp_path)
    for name, content in FORMS[form].items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    lm = load(import_model(tmp_path, tmp_path / "ours", console=QUIET), console=QUIET)
    if form == "older file":  # transformers reads the older file for vision models only
        (tmp_path / "chat_template.jinja").write_text(CHAT_ML)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
    ]
    expected = theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    template = lm.answering_template()
    messages = [Message(**one) for one in talk]
    assert template.encode(messages, lm.tokenizer, generation_prompt=True).token_ids == expected
    assert template.end_of_turn == ("</s>" if form == "end of another form" else "<|im_end|>")
    export = export_model(tmp_path / "ours", "huggingface", tmp_path / "again", console=QUIET).path
    theirs = transformers.AutoTokenizer.from_pretrained(export)
    assert theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"] == expected
    again = load(import_model(export, tmp_path / "back", console=QUIET), console=QUIET)
    assert (
        again.answering_template().encode(messages, again.tokenizer, generation_prompt=True).token_ids
        == expected
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "x"}]}},
            "and none is named default",
        ),
        ({"tokenizer_config.json": {"chat_template": 5}}, "chat_template is not a text"),
        ({"tokenizer_config.json": {"chat_template": "{% if %}"}}, "does not compile"),
        (
            {"chat_template.jinja": CHAT_ML.replace("im_end", "stop")},
            "<|stop|>, which is not in the vocabulary",
        ),
    ],
)
def test_unusable_chat_template_is_reported(
    files: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_folder(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["import", str(tmp_path), "--out", str(tmp_path / "ours")]) == 0
    assert expected in capsys.readouterr().err
    assert not load_metadata(tmp_path / "ours").chat_template


def test_character_tokenizer_with_special_tokens(tmp_path: Path) -> None:
    letters = {
        "<pad>": 0,
        "<s>": 1,
        **{letter: i for i, letter in enumerate("abcdef \n", start=2)},
        "<unk>": 10,
    }
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens(["<pad>", "<s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.encode("bad fed\n") == library.encode("bad fed\n").ids
    assert tokenizer.decode(tokenizer.encode("bad fed\n")) == "bad fed\n"
    assert tokenizer.encode("<s>ab", allow_special=True) == [1, 2, 3]
    assert tokenizer.special_ids == {0, 1}


def test_word_level_tokenizer_is_rejected(tmp_path: Path, fails: Fails) -> None:
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"the": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    assert "is not lossless" in fails("tokenizer", "encode", tmp_path / "tokenizer.json", "a b")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.gguf", b"GGUF", "x.gguf: cannot be read as GGUF"),
        ("x.onnx", b"x", "ONNX files are not imported"),
        ("tf_model.h5", b"x", "TensorFlow's weights are not imported"),
        ("x.safetensors", b"x", "name the folder"),
        ("x.pt", b"x", "cannot be read as nanoGPT's ckpt.pt"),
        ("notes.txt", b"x", "is not a model; expected a folder that transformers saved"),
        ("empty/", b"", "is empty; expected a folder that transformers saved"),
        ("folder/x.gguf", b"GGUF", "x.gguf: cannot be read as GGUF"),
        (
            "folder/notes.txt",
            b"x",
            "holds no config.json, which describes the model of the weights; it holds notes.txt",
        ),
    ],
)
def test_invalid_model_paths_are_rejected(
    name: str, content: bytes, expected: str, tmp_path: Path, fails: Fails
) -> None:
    path = tmp_path / name
    (path if name.endswith("/") else path.parent).mkdir(exist_ok=True)
    if not name.endswith("/"):
        path.write_bytes(content)
    named = path.parent if name.startswith("folder") else path
    message = fails("import", named, "--out", tmp_path / "out")
    assert expected in message and str(named) in message
    assert "gguf" not in name or "nanoGPT" not in message


def test_importing_a_run_is_rejected(tmp_path: Path, fails: Fails) -> None:
    for name in ("config.yaml", "checkpoints.json"):
        (tmp_path / name).write_text("{}")
    assert "is already a run of wholegpt; use it as it is" in fails("import", tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_hub_name_without_the_hub_library_is_explained(
    name: str, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert f"`wholegpt import {name}` downloads it (pip install 'wholegpt[hub]')" in fails("import", name)


def test_weights_without_a_config_and_config_without_weights(tmp_path: Path, fails: Fails) -> None:
    gpt2(tmp_path / "a", 65)
    (tmp_path / "a" / "config.json").unlink()
    assert "holds no config.json" in fails("import", tmp_path / "a")
    gpt2(tmp_path / "b", 65)
    (tmp_path / "b" / "model.safetensors").unlink()
    (tmp_path / "b" / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf: cannot be read as GGUF" in fails("import", tmp_path / "b")


def test_pickled_adapter_and_its_defaults(tmp_path: Path, fails: Fails) -> None:
    """Only the safetensors file of the adapter is read; rank and alpha default to 8."""
    peft = pytest.importorskip("peft")
    base = saved(transformers.GPT2Config(**GPT), tmp_path / "base")
    folder = import_model(tmp_path / "base", tmp_path / "ours", console=QUIET)
    settings = peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    adapted = peft.get_peft_model(base, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter", safe_serialization=True)
    tensors = __import__("safetensors.torch").torch.load_file(
        tmp_path / "adapter" / "adapter_model.safetensors"
    )
    torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    del content["r"], content["lora_alpha"]
    path.write_text(json.dumps(content))
    model = load_model(
        import_model(tmp_path / "adapter", tmp_path / "c", onto=folder, console=QUIET)
    ).model.eval()
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(token_ids), adapted(token_ids).logits, atol=2e-5, rtol=1e-4)
    for changes, named in (
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"lora_bias": True}, "lora_bias is True"),
    ):
        path.write_text(json.dumps({**content, **changes}))
        assert named in fails("import", tmp_path / "adapter", "--onto", folder, "--out", tmp_path / "d")
