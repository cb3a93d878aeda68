"""Output folders: what commands replace, what they keep, and how paths resolve from other folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import wholegpt as wg
from tests.helpers import TINY, Fails, text_of, tiny_model
from wholegpt.checkpoint import CheckpointStore, TrainingFiles, save_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import DataError, RunError, WholeGPTError
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.model import Transformer
from wholegpt.runs.create import create_run
from wholegpt.runs.load import load
from wholegpt.tokenizers import train_character

QUIET = Console(quiet=True)


def run(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def own_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "own" / "run"))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lineage", [None, "{}", "[]", "no JSON", '{"versions": {"hugo": "0.1"}}'])
def test_foreign_folder_is_never_replaced(
    lineage: str | None, tmp_path: Path, text_file: Path, fails: Fails
) -> None:
    site = tmp_path / "site"
    (site / "posts").mkdir(parents=True)
    (site / "config.yaml").write_text("title: my site\n")
    (site / "posts" / "first.md").write_text("# First\n")
    if lineage is not None:
        (site / "lineage.json").write_text(lineage)
    before = files_in(site)
    for command in (
        ("train", text_file, *TINY, "--out", site, "--overwrite"),
        ("data", "prepare", text_file, "--quiet", "--out", site, "--overwrite"),
        ("ladder", text_file, "--minutes", "0.001", "--quiet", "--out", site),
    ):
        assert "exists" in fails(*command)
    assert files_in(site) == before


def test_overwriting_a_run_keeps_foreign_files(own_run: Path, text_file: Path) -> None:
    step = next((own_run / "checkpoints").glob("step-*"))
    mine = ["notes.txt", "wholegpt.json", "plots/loss.png", "data/notes.txt", "data/train-mine.bin"]
    mine += [f"checkpoints/{step.name}/notes.txt", "checkpoints/step-backup/model.safetensors"]
    for name in mine:
        (own_run / name).parent.mkdir(exist_ok=True, parents=True)
        (own_run / name).write_text(name)
    (own_run / "plan.json").write_text("{}")
    run("train", text_file, *TINY, "--out", own_run, "--overwrite")
    assert [(own_run / name).read_text() for name in mine] == mine
    assert not (own_run / "plan.json").exists(), "what was the old run's own is gone"
    assert sorted(path.name for path in own_run.parent.iterdir()) == ["run"]
    run("train", "--resume", own_run, "--quiet")


def test_run_name_is_limited_to_valid_folder_names(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = tmp_path / f"{125 * 'é'}.txt"
    long.write_bytes(text_file.read_bytes())
    run("train", long, *TINY)
    assert [path.name for path in Path("runs").iterdir()] == [90 * "é"]


def test_deleting_old_checkpoints_keeps_foreign_files(tmp_path: Path) -> None:
    tokenizer = train_character(["abcdefghijklmnopqrstuvwxyz0123456789"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size))
    store = CheckpointStore(tmp_path, keep=1)
    store.save(model, tokenizer, TrainingFiles({}, {}), 2, None)
    (store.path(2) / "notes.txt").write_text("mine")
    store.save(model, tokenizer, TrainingFiles({}, {}), 4, None)
    assert store.steps() == [4] and store.last_good() == (4, [])
    assert files_in(store.path(2)) == {"notes.txt": b"mine"}


def test_overwriting_exports_imports_and_prepared_data_keeps_foreign_files(
    trained_run: Path, text_file: Path, tmp_path: Path
) -> None:
    export, model, data = tmp_path / "export", tmp_path / "model", tmp_path / "data"
    for attempt in range(3):
        if attempt == 2:  # the name that earlier versions used
            report = (export / "parity_reports.json").read_text().replace("parity_reports", "certificates")
            (export / "certificate.json").write_text(report)
            (export / "parity_reports.json").unlink()
        export_model(trained_run, "huggingface", export, overwrite=True, console=QUIET)
        import_model(export, model, overwrite=True, console=QUIET)
        run("data", "prepare", text_file, "--tokenizer.kind", "byte", "--quiet", "--out", data, "--overwrite")
        for folder in (export, model, data):
            if (folder / "README.md").exists():
                assert (folder / "README.md").read_text() == folder.name
            (folder / "README.md").write_text(folder.name)


@pytest.mark.parametrize("content", ["{}", '{"files": ["index.html"]}', "[1]", "no JSON"])
def test_foreign_folders_are_not_taken_for_exports_models_or_data(
    content: str, trained_run: Path, tmp_path: Path, fails: Fails, text_file: Path
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for name in (
        "certificate.json",
        "parity_reports.json",
        "config.json",
        "manifest.json",
        "tokenizer.json",
        "index.html",
    ):
        (folder / name).write_text(content)
    before = files_in(folder)
    export_model(trained_run, "huggingface", tmp_path / "export", console=QUIET)
    options = ("--out", folder, "--overwrite", "--quiet")
    for command in (
        ("export", trained_run, "--to", "huggingface"),
        ("import", tmp_path / "export"),
        ("data", "prepare", text_file),
    ):
        assert "name another --out" in fails(*command, *options)
    with pytest.raises(WholeGPTError, match="in the way"):
        loaded = load(trained_run)
        save_model(folder, loaded.model, loaded.tokenizer)
    assert "is not a tokenizer" in fails(
        "tokenizer", "train", text_file, "--out", folder / "index.html", "--overwrite", "--quiet"
    )
    assert files_in(folder) == before


def test_run_is_restored_after_a_crash_while_it_was_replaced(own_run: Path) -> None:
    """The process ended between moving the old run aside and moving the new one into place."""
    work = own_run.with_name(f".partial-{own_run.name}")
    (work / "new").mkdir(parents=True)
    (work / "wholegpt.json").write_text(json.dumps({"new": f"{work.name}/new"}))
    own_run.rename(work / "old")
    assert load(own_run).generate("the", max_tokens=2) is not None
    assert own_run.exists() and not work.exists()


def test_run_with_relative_paths_can_be_repeated_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "texts").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("texts/a.txt").write_text(text_of(3000))
    run("tokenizer", "train", "texts", "--vocab-size", "300", "--out", "tokenizer.json", "--quiet")
    run("train", "texts/a.txt", "../here/texts", "--tokenizer.path", "tokenizer.json", "--out", "run", *TINY)
    config = wg.recipe("run")
    assert config.data.source == (str(tmp_path / "here/texts/a.txt"), str(tmp_path / "here/texts"))
    assert config.tokenizer.path == str(tmp_path / "here/tokenizer.json")
    monkeypatch.chdir(tmp_path / "there")
    run("train", "--config", "../here/run/config.yaml", "--out", "again", "--quiet")
    weights = "checkpoints/step-00000006/model.safetensors"
    assert Path("again", weights).read_bytes() == Path("../here/run", weights).read_bytes()


def test_corpus_names_and_standard_input_are_not_made_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wholegpt.runs.folder import with_absolute_paths
    from wholegpt.settings.presets import configure

    monkeypatch.chdir(tmp_path)
    for name in ("table", "run", "t.txt", "d.csv", "../v.csv", "t.jinja", "-"):
        Path(name).mkdir()
    given = ["python-docs", "hf:owner/name", "hf:table", "/dev/stdin", "-", "t.txt", "missing.txt"]
    finetuning = {"model": "run", "data": "d.csv", "validation": "../v.csv", "chat_template": "t.jinja"}
    config = with_absolute_paths(configure({"data": {"source": given}, "finetuning": finetuning}))
    assert config.data.source == (
        *("python-docs", "hf:owner/name", f"hf:{tmp_path}/table", "/dev/stdin", "-"),
        f"{tmp_path}/t.txt",
        "missing.txt",
    )
    assert config.finetuning.model == f"{tmp_path}/run" and config.finetuning.data == f"{tmp_path}/d.csv"
    assert config.finetuning.validation == f"{tmp_path.parent}/v.csv"
    assert config.finetuning.chat_template == f"{tmp_path}/t.jinja" and config.tokenizer.path == ""


def test_folder_takes_precedence_over_a_preset_of_the_same_name(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = load("modern-tiny", console=QUIET)
    shutil.copytree(trained_run, "modern-tiny")
    found = load("modern-tiny", console=Console())
    assert found.model.vocab_size != preset.model.vocab_size
    assert "modern-tiny is read from the folder of that name" in capsys.readouterr().err
    run("info", "modern-tiny", "--json")
    assert json.loads(capsys.readouterr().out)["config"]["d_model"] == 16


def test_folder_takes_precedence_over_a_corpus_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tinyshakespeare").mkdir()
    Path("tinyshakespeare/mine.txt").write_text(text_of(3000))
    run("data", "stats", "tinyshakespeare", "--json")
    assert json.loads(capsys.readouterr().out)["text"]["characters"] == len(text_of(3000))
    run("train", "tinyshakespeare", *TINY, "--out", "run")
    assert wg.recipe("run").data.source == (str(tmp_path / "tinyshakespeare"),)


@pytest.mark.parametrize(
    "content", ["title: my site\n", "model:\n  d_model: x\n", "precision:\n  dtype: float16\n"]
)
@pytest.mark.parametrize("parent", [".", "..", "../.."])
def test_foreign_config_above_a_model_is_ignored(
    parent: str, content: str, trained_run: Path, tmp_path: Path
) -> None:
    step = next((trained_run / "checkpoints").glob("step-*"))
    model = Path(shutil.copytree(step, tmp_path / "site" / "checkpoints" / "model"))
    (model / parent / "config.yaml").write_text(content)
    plain = Path(shutil.copytree(step, tmp_path / "plain" / "x" / "model"))
    text = "the of and a to in is you that it"
    assert load(model).score(text) == load(plain).score(text)


def test_foreign_folder_does_not_hide_a_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("demo/config.yaml").write_text("title: a site\n")
    assert wg.recipe("demo").training.steps or wg.recipe("demo").training.epochs


def changed(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
def test_manifest_paths_must_stay_inside_the_folder(
    name: str, own_run: Path, text_file: Path, tmp_path: Path, fails: Fails
) -> None:
    data = tmp_path / "data"
    run("data", "prepare", text_file, "--tokenizer.kind", "byte", "--quiet", "--out", data)
    shard = data / "train-00000.bin"
    shutil.copy(shard, tmp_path / "outside.bin")
    changed(data / "manifest.json", lambda content: content["train"]["shards"][0].update(file=name))
    assert f"names the file '{name}', which is not inside" in fails(
        "train", data, *TINY, "--out", tmp_path / "new"
    )
    step = next((own_run / "checkpoints").glob("step-*"))
    changed(step / "checksums.json", lambda content: content["sha256"].update({name: "0" * 64}))
    assert f"names the file '{name}', which is not inside" in fails("evaluate", step, text_file, "--quiet")


@pytest.mark.parametrize("best", ["../../x", 1.5, None, [1], {"a": 1}])
def test_damaged_checkpoint_index_is_tolerated(best: Any, own_run: Path) -> None:
    (own_run / "checkpoints.json").write_text(json.dumps({"format_version": 1, "best": best}))
    assert CheckpointStore(own_run).choose("best")[0].parent == own_run / "checkpoints"
    (own_run / "checkpoints.json").write_text("[]")
    assert CheckpointStore(own_run).choose("best")[0].parent == own_run / "checkpoints"


@pytest.mark.parametrize(
    ("name", "value"), [("bytes", -1), ("documents", -1), ("characters", 10**9), ("tokens", 7)]
)
def test_impossible_counts_in_a_manifest_are_rejected(
    name: str, value: int, text_file: Path, tmp_path: Path
) -> None:
    run("data", "prepare", text_file, "--out", tmp_path / "data", "--quiet")
    changed(tmp_path / "data" / "manifest.json", lambda content: content["train"].update({name: value}))
    with pytest.raises(DataError, match="not a readable manifest"):
        wg.train(tmp_path / "data", out=tmp_path / "run", console=QUIET)


def test_dtype_of_shards_is_checked(text_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("data", "prepare", text_file, "--tokenizer.kind", "byte", "--quiet", "--out", data)
    changed(data / "manifest.json", lambda content: content.update(dtype="O"))
    with pytest.raises(DataError, match="dtype is 'O'"):
        wg.train(data, out=tmp_path / "run", console=QUIET)


def test_run_is_not_replaced_while_another_process_starts_it(own_run: Path, text_file: Path) -> None:
    import threading

    from tests.helpers import tiny_config
    from wholegpt.files import lock_folder

    problems: list[BaseException] = []

    def other() -> None:
        for overwrite in (False, True):
            try:
                create_run(tiny_config(text_file), own_run, overwrite, QUIET)
            except RunError as error:
                problems.append(error)

    with lock_folder(own_run, "train"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(problems) == 2 and all("is writing into it" in str(error) for error in problems)


@pytest.mark.parametrize("out", ["a" * 250, "a/" * 1500, "{file}/run", "/proc/run", "caf\udce9"])
def test_invalid_run_folders_are_rejected(
    out: str, text_file: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text_file.parent)
    message = fails("train", text_file, *TINY, "--out", out.format(file=text_file))
    assert "name another folder" in message and "is writing" not in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lineage.json", "[]", "lineage.json: expected a JSON object"),
        ("lineage.json", "null", "lineage.json: expected a JSON object"),
        ("config.yaml", "", "config.yaml: is not what a run records"),
        ("config.yaml", "[" * 5000, "config.yaml: not valid YAML: nested too deeply"),
    ],
)
def test_damaged_files_of_a_run_are_reported(
    name: str, content: str, message: str, own_run: Path, fails: Fails
) -> None:
    (own_run / name).write_text(content)
    assert message in fails("train", "--resume", own_run)


def test_damaged_lines_of_metrics_are_skipped(own_run: Path) -> None:
    metrics = own_run / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_bytes(b'{}\nnull\n[]\n\xff\n{"step": "1"}\n' + b"[" * 5000 + b"\n" + whole.encode())
    run("train", "--resume", own_run, "--quiet")
    assert metrics.read_text() == whole


def test_run_without_checkpoints_is_reported(own_run: Path, fails: Fails) -> None:
    shutil.rmtree(own_run / "checkpoints")
    assert "is a run that has no checkpoint yet; continue it with `wholegpt train --resume" in fails(
        "generate", own_run, "the"
    )
