"""Invalid input: one line that says what to do, exit code 2, and no file lost."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY, Fails, text_of, tiny
from wholegpt.checkpoint import CheckpointStore
from wholegpt.cli import main
from wholegpt.model import base


def test_missing_file(fails: Fails, tmp_path: Path) -> None:
    assert "nowhere.txt: does not exist; check the path" in fails("train", tmp_path / "nowhere.txt", *TINY)


def test_empty_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt: holds no text" in fails(
        "train", tmp_path / "empty.txt", "--out", tmp_path / "run", *TINY
    )
    assert not (tmp_path / "run").exists()


def test_training_without_a_source(fails: Fails) -> None:
    assert "no text given; name a file, a folder or a corpus (python-docs" in fails("train", *TINY)


def test_file_that_is_not_utf8(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(text_of(3000).encode() + "café".encode("latin-1"))
    message = fails("train", path, "--out", tmp_path / "run", *TINY)
    position = path.read_bytes().index(b"\xe9")
    assert f"latin.txt: byte {position} (0xe9) is not utf-8" in message and "--encoding latin-1" in message
    assert not (tmp_path / "run").exists()
    assert main(["train", str(path), "--out", str(tmp_path / "run"), "--encoding", "latin-1", *TINY]) == 0
    assert "data.encoding is 'klingon'" in fails("train", path, "--encoding", "klingon", *TINY)


def test_file_with_nul_bytes(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"ab\0cd" * 100)
    assert "binary.txt: holds NUL bytes" in fails("train", tmp_path / "binary.txt", *TINY)


def test_bad_json_lines(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "fine"}\n{"text": broken}\n')
    assert "documents.jsonl: line 2 is not JSON" in fails("train", path, *TINY)
    path.write_text('{"text": "fine"}\n{"body": "x", "title": "y"}\n')
    assert "line 2 has no text in field 'text' (found: body, title)" in fails("train", path, *TINY)


def test_corpus_shorter_than_a_window(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcdefghij")
    message = fails("train", tmp_path / "short.txt", "--out", tmp_path / "run", *TINY)
    assert "the training text has 9 tokens, fewer than one window of 17" in message
    assert "--model.context-length" in message
    assert not (tmp_path / "run").exists()


def test_prompt_with_unknown_characters(fails: Fails, trained_run: Path) -> None:
    message = fails("generate", trained_run, "the Ω", "--quiet", "--json")
    assert "character 'Ω' (U+03A9) at position 4 is not among the" in message


def test_sample_prompt_is_checked_before_training(fails: Fails, text_file: Path, tmp_path: Path) -> None:
    message = fails("train", text_file, "--out", tmp_path / "run", *TINY, "--logging.sample-prompt", "Ω")
    assert "character 'Ω'" in message
    assert not (tmp_path / "run").exists()


def test_vocabulary_sizes_must_match(fails: Fails, text_file: Path, run_folder: Path, tmp_path: Path) -> None:
    message = fails("train", text_file, "--out", tmp_path / "new", *TINY, "--model.vocab-size", "99")
    assert "model.vocab_size is 99 and the tokenizer has" in message
    folder = tmp_path / "model"
    shutil.copytree(CheckpointStore(run_folder).path(6), folder)
    (folder / "checksums.json").unlink()
    assert (
        main(
            ["tokenizer", "train", str(text_file), "--kind", "byte", "--out", str(folder / "tokenizer.json")]
        )
        == 2
    )
    assert main(["tokenizer", "train", str(text_file), "--kind", "byte", "--overwrite", "--quiet", "--out",
                 str(folder / "tokenizer.json"), "--json"]) == 0  # fmt: skip
    assert "the tokenizer has 257 tokens and the model" in fails("generate", folder, "--quiet")


def test_width_not_divisible_by_heads(fails: Fails, text_file: Path) -> None:
    message = fails("train", text_file, *tiny(model_n_heads="3"))
    assert "model.d_model is 16, which is not divisible by model.n_heads, 3; try d_model 15" in message


def test_unknown_names_suggest_the_nearest(fails: Fails, text_file: Path) -> None:
    assert "unknown preset 'gpt2-smal'; did you mean 'gpt2-small'?" in fails(
        "train", text_file, "--preset", "gpt2-smal"
    )
    assert "did you mean 'python-docs'?" in fails("train", "python-doc")
    assert "--model.n-layer. Did you mean --model.n-layers?" in fails(
        "train", text_file, "--model.n-layer", "3"
    )
    assert 'Did you mean "rms-norm"?' in fails("train", text_file, "--model.norm", "rmsnorm")
    assert "unknown recipe 'dmo'; did you mean 'demo'?" in fails("train", text_file, "--recipe", "dmo")
    assert 'Did you mean "train"?' in fails("trian")
    assert "no such run, model folder or preset; did you mean 'modern-tiny'?" in fails("info", "modern-tin")
    assert "to convert" in fails("train", text_file, "--model.n-layers", "three")
    assert "runtime.device is 'tpu'" in fails("train", text_file, *tiny(device="tpu"))


def test_misspelled_field_in_a_recipe(fails: Fails, text_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\n  learning_rte: 0.1\n")
    message = fails("train", text_file, "--recipe", path)
    assert "mine.yaml: unknown field 'optimizer.learning_rte'; did you mean 'learning_rate'?" in message


def test_out_folder_that_holds_a_run(fails: Fails, text_file: Path, run_folder: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in run_folder.rglob("*"))
    message = fails("train", text_file, "--out", run_folder, *TINY)
    assert "already holds a run" in message and "--overwrite" in message and "--resume" in message
    assert sorted((p, p.stat().st_mtime_ns) for p in run_folder.rglob("*")) == before


def test_out_folder_that_holds_something_else(fails: Fails, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for options in ([], ["--overwrite"]):
        assert "exists and is not a run" in fails(
            "train", text_file, "--out", tmp_path / "mine", *TINY, *options
        )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_full_disk_while_saving(
    fails: Fails, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    original, saves = safetensors.torch.save_file, 0

    def fill_up(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal saves
        saves += 1
        if saves > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", fill_up)
    message = fails("train", text_file, "--out", tmp_path / "run", *TINY)
    assert "step-00000004: cannot be written: No space left on device" in message and "resume" in message
    assert CheckpointStore(tmp_path / "run").last_good() == (2, [])
    monkeypatch.setattr(safetensors.torch, "save_file", original)
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert CheckpointStore(tmp_path / "run").last_good() == (6, [])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "training/state.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_checkpoint(
    run_folder: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    """The last valid checkpoint is used, with a warning; if none is left, it is an error."""
    store = CheckpointStore(run_folder)
    assert store.steps() == [4, 6]

    def spoil(step: int) -> None:
        path = store.path(step) / name
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        else:
            path.unlink()

    spoil(6)
    assert main(["generate", str(run_folder), "the", "--checkpoint", "last", "--max-tokens", "3"]) == 0
    warning = capsys.readouterr().err
    assert f"step-00000006/{name}" in warning and "using step-00000004" in warning
    assert main(["train", "--resume", str(run_folder)]) == 0
    assert "continuing from step-00000004" in capsys.readouterr().err
    assert store.last_good() == (6, [])
    spoil(4)
    spoil(6)
    assert "no usable checkpoint" in fails("generate", run_folder, "the")
    assert "no usable checkpoint" in fails("train", "--resume", run_folder, "--quiet")


def test_checkpoint_from_a_newer_version(fails: Fails, run_folder: Path) -> None:
    store = CheckpointStore(run_folder)
    path = store.path(6) / "checksums.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99}))
    for command in (
        ["generate", run_folder, "the", "--checkpoint", "last"],
        ["train", "--resume", run_folder],
    ):
        message = fails(*command, "--quiet")
        assert "format version 99 is newer than the 1 this program knows; update wholegpt" in message
    folder = store.path(6)
    (folder / "config.json").write_text(json.dumps({"format_version": 99, "model": {}}))
    assert "format version 99 is newer" in fails("generate", folder, "the", "--quiet")


def test_nan_loss(fails: Fails, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood, calls = base.linear_cross_entropy, 0

    def broken(*operands: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return likelihood(*operands) * (float("nan") if calls == 5 else 1)

    monkeypatch.setattr(base, "linear_cross_entropy", broken)
    message = fails("train", text_file, "--out", tmp_path / "run", *TINY)
    assert "the loss is nan at step 5; try a lower" in message and "checkpoint is that of step 4" in message
    assert CheckpointStore(tmp_path / "run").last_good() == (4, [])


def test_not_a_run(fails: Fails, tmp_path: Path) -> None:
    assert "not a run (it has no config.yaml)" in fails("train", "--resume", tmp_path)
    assert "no such run" in fails("generate", tmp_path / "nothing", "x")
    assert "holds neither a run" in fails("evaluate", tmp_path)


def test_resume_takes_no_settings(fails: Fails, run_folder: Path) -> None:
    assert "accepts no text, and no options" in fails(
        "train", "--resume", run_folder, "--model.n-layers", "3"
    )
    assert "accepts no text, and no options" in fails("train", "other.txt", "--resume", run_folder)


def test_missing_checkpoint_lists_those_that_exist(fails: Fails, run_folder: Path) -> None:
    assert "no checkpoint '5'; there are best, last, 4, 6" in fails(
        "generate", run_folder, "--checkpoint", "5"
    )


def test_values_out_of_range(fails: Fails, trained_run: Path, text_file: Path) -> None:
    assert "temperature is -1.0" in fails("generate", trained_run, "--temperature", "-1", "--json", "--quiet")
    assert "stride is 99" in fails("evaluate", trained_run, text_file, "--stride", "99", "--quiet")
    assert "--max-seconds is 0" in fails("train", text_file, "--max-seconds", "0")
    assert "--seed is -3" in fails("train", text_file, "--seed", "-3")
    assert "tokenizer.vocab_size is 5" in fails(
        "tokenizer", "train", text_file, "--out", "x.json", "--vocab-size", "5"
    )


def test_output_folder_that_cannot_be_created(fails: Fails, text_file: Path) -> None:
    assert "text.txt: File exists" in fails("train", text_file, "--out", text_file / "run", *TINY)


def test_internal_errors_exit_with_code_1(
    fails: Fails, trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("wholegpt.cli.info._known", broken)
    assert "this is a bug in wholegpt: ZeroDivisionError: oops; --debug" in fails("info", trained_run, code=1)
    assert main(["info", str(trained_run), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_invalid_trackers(fails: Fails, text_file: Path, tmp_path: Path) -> None:
    command, option = ("train", text_file, "--out", tmp_path / "run", *TINY), "--logging.trackers"
    message = fails(*command, option, "wandb", option, "wandb")
    assert "logging.trackers is wandb, wandb; name each tracker once" in message
    assert 'Did you mean "wandb"?' in fails(*command, option, "wandbb")
    assert not (tmp_path / "run").exists()
