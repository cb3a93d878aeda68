"""Regression tests for unusual but plausible usage, found by manual testing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import tokenizers as library

import wholegpt as wg
from tests.helpers import TINY, Fails, text_of, tiny, tiny_config
from wholegpt.checkpoint import CheckpointStore
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import TokenizerError
from wholegpt.runs import api
from wholegpt.runs import folder as run_folder
from wholegpt.settings.choices import Dtype
from wholegpt.tokenizers import Tokenizer, train_bpe
from wholegpt.training import callbacks
from wholegpt.training.loop import StepMetrics
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_newest_checkpoint_is_never_deleted(text_file: Path, tmp_path: Path) -> None:
    """Resuming when a damaged checkpoint has a higher step, with ``keep`` 1."""
    config = tiny_config(text_file, checkpointing={"every": 1, "keep": 1}, evaluation={"every": 0})
    run = api.train(config=config, out=tmp_path / "run", max_seconds=1e-9, console=QUIET).path
    store = CheckpointStore(run)
    shutil.copytree(store.path(1), store.path(5))
    (store.path(5) / "model.safetensors").write_bytes(b"damaged")
    api.resume(run, max_seconds=1e-9, console=QUIET)
    assert store.steps() == [2]
    assert store.last_good() == (2, [])


def test_foreign_folders_beside_the_checkpoints_are_ignored(run_folder: Path) -> None:
    store = CheckpointStore(run_folder)
    shutil.copytree(store.path(6), store.folder / "step-00000006.bak")
    (store.folder / "notes").mkdir()
    assert store.steps() == [4, 6]


def test_damaged_checkpoint_opened_as_a_model_folder(fails: Fails, run_folder: Path) -> None:
    folder = CheckpointStore(run_folder).path(6)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged: its sha256" in fails("generate", folder, "the", "--quiet")


def foreign(tmp_path: Path, **parts: object) -> Path:
    opened = library.Tokenizer.from_str(train_bpe([text_of(3000)], 300).to_json())
    for name, part in parts.items():
        setattr(opened, name, part)
    opened.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_foreign_byte_level_tokenizers_count_bytes_correctly(tmp_path: Path) -> None:
    pre = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Digits(), library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made = Tokenizer.load(foreign(tmp_path, pre_tokenizer=pre))
    text = "café 123 🙂"
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert made.text_sizes[ids].sum(axis=0).tolist() == [len(text.encode()), len(text)]


def test_truncation_of_a_foreign_tokenizer_is_disabled(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    opened = library.Tokenizer.from_file(str(path))
    opened.enable_truncation(8)
    opened.save(str(path))
    made = Tokenizer.load(path)
    assert made.decode(made.encode("of the and " * 50)) == "of the and " * 50
    assert json.loads(made.to_json())["truncation"] is None


def test_lossy_tokenizers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not lossless"):
        Tokenizer.load(foreign(tmp_path, pre_tokenizer=library.pre_tokenizers.WhitespaceSplit()))


def test_normalizing_tokenizers_do_not_claim_to_keep_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign(tmp_path, normalizer=library.normalizers.Lowercase()))
    assert not tokenizer.keeps_text and tokenizer.decode(tokenizer.encode("The OF")) == "the of"


def test_training_on_the_data_of_the_overwritten_run_is_rejected(fails: Fails, run_folder: Path) -> None:
    before = CheckpointStore(run_folder).last_good()
    message = fails("train", run_folder / "data", "--out", run_folder, "--overwrite", *TINY)
    assert "which the run trains on; name another --out" in message
    assert CheckpointStore(run_folder).last_good() == before


@pytest.mark.parametrize(
    "function", ["stages.pretraining.evaluate_tokens", "runs.train.write_report", "runs.train._restore"]
)
def test_ctrl_c_outside_the_training_loop_tells_how_to_resume(
    function: str,
    fails: Fails,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"wholegpt.{function}", interrupt)
        message = fails("train", text_file, "--out", tmp_path / "my run", *TINY, code=130)
    assert f"--resume '{tmp_path / 'my run'}'`" in message
    assert main(["train", "--resume", str(tmp_path / "my run"), "--quiet"]) == 0


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_ctrl_c_in_other_commands_is_reported(
    command: str,
    fails: Fails,
    trained_run: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functions = {
        "train": "wholegpt.stages.text_source.prepare",
        "generate": "wholegpt.language_model.generate",
        "evaluate": "wholegpt.language_model.evaluate_text",
    }
    monkeypatch.setattr(functions[command], interrupt)
    arguments = {"train": [text_file, "--out", tmp_path / "run", *TINY], "generate": [trained_run, "--quiet"]}
    message = fails(command, *arguments.get(command, [trained_run, text_file, "--quiet"]), code=130)
    ending = "" if command == "generate" else "; nothing was saved; run the same command to start again"
    assert message == f"wholegpt: interrupted{ending}\n"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_does_not_undo_an_early_stop() -> None:
    state = TrainingState(stop_reason="no better validation loss in 3 evaluations")
    signals = callbacks.StopOnSignal(QUIET)
    signals.asked = True
    signals.after_step(state, StepMetrics(1.0, 1e-3, 1.0, 4, 0.1))
    assert state.stop_reason.startswith("no better")


def test_settings_that_this_machine_cannot_resume_are_rejected_at_start(
    fails: Fails,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "runtime.threads is 4000; this machine has" in fails(
        "train", text_file, *TINY, "--threads", "4000"
    )
    monkeypatch.setattr("wholegpt.runtime.precision.has_bfloat16", lambda device: False)
    message = fails("train", text_file, *TINY, "--precision.dtype", "bfloat16")
    assert "precision.dtype is bfloat16, which this machine's cpu lacks; try float32" in message


def test_train_seconds_are_recorded_per_step(trained_run: Path) -> None:
    records = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    seconds = [r["train_seconds"] for r in records if r["kind"] == "train"]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    pairs = [
        (r["train_seconds"], v["train_seconds"])
        for r in records
        for v in records
        if (r["kind"], v["kind"]) == ("train", "validation") and r["step"] == v["step"]
    ]
    assert len(pairs) == 2 and all(train <= validation for train, validation in pairs)


def test_resume_shows_its_config_without_training(
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(CheckpointStore(run_folder).path(6))
    assert main(["train", "--resume", str(run_folder), "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 6
    assert CheckpointStore(run_folder).steps() == [4]


def test_lone_surrogate_in_json_lines(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "a\\ud800b"}\n')
    assert "d.jsonl: line 2 holds half of a surrogate pair" in fails("train", path, *TINY)


def test_tiny_temperature_equals_greedy_decoding(trained_run: Path) -> None:
    lm = wg.load(trained_run)
    greedy = lm.generate("the", max_tokens=20, temperature=0).text
    for temperature in (1e-50, 5e-324):
        assert lm.generate("the", max_tokens=20, temperature=temperature).text == greedy


def test_training_on_many_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        (tmp_path / f"chapter number {i}.txt").write_text(text_of(400, i))
    assert main(["train", *(p.name for p in sorted(tmp_path.glob("*.txt"))), *TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "runs/chapter number 0+39-more"


def test_training_on_a_folder_ignores_the_runs_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.md").write_text(text_of(3000))
    tokens = []
    for _ in range(2):
        assert main(["train", ".", *tiny(training_steps="1"), "--json"]) == 0
        run = json.loads(capsys.readouterr().out)["run"]
        tokens.append(json.loads((Path(run) / "data" / "manifest.json").read_text())["train"]["tokens"])
    assert tokens[0] == tokens[1]


def test_prepared_data_is_the_only_source_and_is_recorded(
    text_file: Path,
    tmp_path: Path,
    fails: Fails,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "prepared"
    assert (
        main(["data", "prepare", str(text_file), "--out", str(out), "--tokenizer.kind", "byte", "--quiet"])
        == 0
    )
    capsys.readouterr()
    assert "is prepared data, not text" in fails("train", out, text_file, *TINY)
    run = api.train(str(out), config=tiny_config(out), out=tmp_path / "run", console=QUIET)
    assert wg.recipe(str(run.path)).tokenizer.path == str(out)
    assert run.load().tokenizer.vocab_size == 257


def test_prompt_is_printed_only_if_generation_starts(
    fails: Fails,
    trained_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "temperature is -1.0" in fails("generate", trained_run, "the", "--temperature", "-1", "--quiet")
    assert "character" in fails("generate", trained_run, "the Ω", "--quiet")
    assert main(["generate", str(trained_run), "the", "--max-tokens", "0", "--quiet"]) == 0
    assert capsys.readouterr().out == "the\n"


def test_single_stop_string_may_be_a_string(trained_run: Path) -> None:
    lm = wg.load(trained_run)
    one, several = (lm.generate("the", max_tokens=60, seed=2, stop=stop) for stop in (" ", (" ",)))
    assert one.text == several.text and " " not in one.text
    assert one.finish_reason == "stop"


def test_untrained_presets() -> None:
    lm = wg.load("modern-tiny")
    assert len(lm.generate("a", max_tokens=3, temperature=1.0).token_ids) <= 3
    with pytest.raises(TokenizerError, match="a fresh preset has no tokenizer"):
        wg.LanguageModel(lm.model, None).generate("a")


def test_evaluating_a_model_folder_needs_a_text(fails: Fails, run_folder: Path) -> None:
    message = fails("evaluate", CheckpointStore(run_folder).path(6), "--quiet")
    assert "is not a run and has no validation text; give a text" in message


def test_evaluation_equals_the_validation_of_a_float32_run(text_file: Path, tmp_path: Path) -> None:
    config = tiny_config(text_file, precision={"dtype": "float32"})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    lm = run.load("last")
    assert lm.dtype is Dtype.float32
    score = lm.evaluate_tokens(run_folder.run_data(run.path).validation, 0, Dtype.automatic, QUIET)
    assert {name: getattr(score, name) for name in vars(run.validation)} == vars(run.validation)


def test_non_finite_scores_are_null_in_json(trained_run: Path) -> None:
    lm = wg.load(trained_run)
    score = dataclasses.replace(lm.evaluate(trained_run.parent / "text.txt"), bits_per_byte=float("nan"))
    assert json.loads(json.dumps(score.to_json(), allow_nan=False))["bits_per_byte"] is None


def test_epochs_replace_the_default_steps() -> None:
    config = wg.configure({"training": {"epochs": 2}})
    assert (config.training.steps, config.training.epochs) == (0, 2)


def test_broken_pipe_does_not_stop_notes_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    Console().note("hello")
    Console().warn("hello")


def test_multiple_sources_report_skipped_files_and_paths(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text(text_of(500))
    (folder / "b.png").write_bytes(b"x")
    out = tmp_path / "out"
    assert (
        main(["data", "prepare", str(text_file), str(folder), "--out", str(out), "--tokenizer.kind", "byte"])
        == 0
    )
    assert re.search(r"2 files; skipped 1 binary \(\.png\)", capsys.readouterr().err)
    provenance = json.loads((out / "manifest.json").read_text())["provenance"]["path"]
    assert provenance == f"{text_file}; {folder}"
