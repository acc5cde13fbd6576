"""The command rnndrop: its help, how it finds a subcommand, and what it fills in for fairseq's own commands."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from fairseq.tasks import TASK_REGISTRY

from rnndrop_plugin.cli import fairseq_eval, fairseq_train, main
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask

PACKAGE = fairseq_train.USER_DIR
ALL = ["--required-batch-size-multiple", "1"]


@pytest.fixture
def rnndrop(monkeypatch, capsys):
    """Runs the command: (exit status, stdout, stderr)."""

    def rnndrop(*args):
        monkeypatch.setattr(sys, "argv", ["bin/rnndrop", *args])
        capsys.readouterr()
        try:
            main.main()
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return rnndrop


ALL_HELP = """
import contextlib, io, sys
from rnndrop_plugin.cli.main import COMMANDS, main
for name in ["", "prepare", *COMMANDS]:
    sys.argv = ["rnndrop", *name.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert out.getvalue().startswith(f"usage: rnndrop {name}".rstrip()), name
    assert len(out.getvalue()) > 200
print(*{"torch", "fairseq"} & sys.modules.keys())
"""


def test_help_imports_nothing_that_takes_seconds():
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_help_lists_the_commands(rnndrop):
    status, out, err = rnndrop("--help")
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out for name in main.COMMANDS)
    assert "  train " not in rnndrop("prepare", "-h")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "rnndrop: error: a command is missing, expected one of prepare, train,"),
        (("tga", "x"), "rnndrop: error: 'tga' is not a command, expected one of prepare, train,"),
        (("prepare",), "rnndrop prepare: error: a command is missing, expected one of ptb, text,"),
        (("prepare", "--dest"), "rnndrop prepare: error: '--dest' is not a command, expected one of ptb, text,"),
        (("prepare", "ptb", "--source", "absent", "--dest", "x"), "rnndrop prepare ptb: error: absent: no such folder"),
        (("eval", "data", "--path", "absent.pt"), "rnndrop eval: error: absent.pt: "),
    ],
)
def test_what_cannot_be_is_one_line(rnndrop, args, message):
    status, out, err = rnndrop(*args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)


@pytest.mark.parametrize(
    ("module", "package"), [("fairseq", '"rnndrop-plugin[fairseq]"'), ("matplotlib", "matplotlib")]
)
def test_a_package_that_is_not_installed(rnndrop, monkeypatch, tmp_path, module, package):
    (tmp_path / "log").write_text('{"ppl": 1, "num_updates": 1}\n')
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "fairseq_cli", None)
    for name in [name for name in sys.modules if name.startswith("rnndrop_plugin.tasks")]:
        monkeypatch.delitem(sys.modules, name)
    args = {"fairseq": ("eval", "data", "--path", "x"), "matplotlib": ("plot", str(tmp_path / "log"), "--output", "x")}
    status, _, err = rnndrop(*args[module])
    assert status == 2
    assert err.endswith(f"error: {module} is not installed, and this command needs it: pip install {package}\n")


@pytest.mark.parametrize(
    ("given", "filled_in"),
    [
        ("data --arch lstm_rnndrop_ptb_word", f"--user-dir {PACKAGE}"),
        ("data --arch lstm_rnndrop_tagger --task pos", f"--user-dir {PACKAGE}"),
        ("data --arch lstm_rnndrop --user-dir=own", ""),
    ],
)
def test_what_is_filled_in(given, filled_in):
    assert fairseq_train.complete(given.split()) == [*given.split(), *filled_in.split()]


def test_help_of_an_architecture_and_of_a_checkpoint_is_that_of_the_command(rnndrop, monkeypatch):
    called = []
    monkeypatch.setattr(fairseq_train, "hand_over", lambda *args: called.append(args))
    monkeypatch.setattr(fairseq_eval, "hand_over", lambda *args: called.append(args))
    monkeypatch.setattr(fairseq_eval, "task_of", lambda *args: "rnndrop_tagging")
    assert rnndrop("train", "--arch=lstm_rnndrop", "--help")[0] == 0
    assert rnndrop("eval", "--path", "model.pt", "-h")[0] == 0
    assert [(command, arguments[:2]) for command, arguments in called] == [
        ("train", ["--arch=lstm_rnndrop", "--help"]),
        ("validate", ["--path", "model.pt"]),
    ]
    assert "-h" in called[1][1]


@pytest.mark.parametrize(
    ("task", "flags", "command", "filled_in"),
    [
        ("rnndrop_language_modeling", [], "eval_lm", ["--gen-subset", "test"]),
        ("rnndrop_tagging", [], "validate", ["--valid-subset", "test", "--batch-size", "64", *ALL]),
        ("rnndrop_classification", ["--valid-subset=valid", "--max-tokens=9"], "validate", ALL),
        ("translation", ["--gen-subset", "valid"], "generate", ALL),
        ("translation_from_pretrained_bart", ["--gen-subset", "valid"], "generate", ALL),
        ("language_modeling", [], "eval_lm", ["--gen-subset", "test"]),
        ("own", [], "eval_lm", ["--gen-subset", "test"]),
    ],
)
def test_evaluation_by_the_task_of_the_checkpoint(rnndrop, monkeypatch, task, flags, command, filled_in):
    class Own(RnndropLanguageModelingTask):
        pass

    monkeypatch.setitem(TASK_REGISTRY, "own", Own)
    monkeypatch.setattr(fairseq_eval, "task_of", lambda path, name, user_dir: {"model.pt": task}[path])
    called = []
    monkeypatch.setattr(fairseq_eval, "hand_over", lambda *args: called.append(args))
    given = ["data", "--path", "model.pt", *flags]
    assert rnndrop("eval", *given)[0] == 0
    assert called == [(command, [*given, "--user-dir", PACKAGE, "--task", task, *filled_in])]


@pytest.mark.parametrize(
    ("task", "given", "passed"),
    [
        ("rnndrop_language_modeling", ["--valid-subset", "valid"], ["--gen-subset", "valid"]),
        ("rnndrop_tagging", ["--gen-subset=valid"], ["--valid-subset=valid"]),
    ],
)
def test_either_flag_names_the_split(rnndrop, monkeypatch, task, given, passed):
    monkeypatch.setattr(fairseq_eval, "task_of", lambda path, name, user_dir: task)
    called = []
    monkeypatch.setattr(fairseq_eval, "hand_over", lambda command, arguments: called.append(arguments))
    assert rnndrop("eval", "data", "--path", "model.pt", *given)[0] == 0
    assert called[0][3 : 3 + len(passed)] == passed and "test" not in called[0]
    status, _, err = rnndrop("eval", "data", "--path", "model.pt", "--gen-subset", "a", "--valid-subset", "b")
    assert (status, err) == (
        2,
        "rnndrop eval: error: --gen-subset and --valid-subset both name the split: give one of them\n",
    )


def test_evaluation_of_a_task_that_is_not_known(rnndrop, monkeypatch, tmp_path):
    """fairseq would print all its flags and all its tasks."""
    state = {"cfg": SimpleNamespace(task=SimpleNamespace(_name="own"))}
    monkeypatch.setattr("fairseq.checkpoint_utils.load_checkpoint_to_cpu", lambda path: state)
    called = []
    monkeypatch.setattr(fairseq_eval, "hand_over", lambda *args: called.append(args))
    status, _, err = rnndrop("eval", "data", "--path", "model.pt")
    reason = "model.pt: a checkpoint of the task own, which is not known here (--user-dir names it)"
    assert (status, err) == (2, f"rnndrop eval: error: {reason}\n")
    status, _, err = rnndrop("eval", "data", "--path", "model.pt", "--task", "other")
    reason = "--task other, a task which is not known here (--user-dir names it)"
    assert (status, err) == (2, f"rnndrop eval: error: {reason}\n")
    assert rnndrop("eval", "data", "--path", "model.pt", "--user-dir", "absent")[0] == 2
    assert not called
    code = (
        "from fairseq.tasks import FairseqTask, register_task\nregister_task('own')(type('Own', (FairseqTask,), {}))\n"
    )
    (tmp_path / "a_task_of_ones_own").mkdir()
    (tmp_path / "a_task_of_ones_own" / "__init__.py").write_text(code)
    monkeypatch.setattr("fairseq.tasks.TASK_REGISTRY", dict(TASK_REGISTRY))
    assert rnndrop("eval", "data", "--path", "model.pt", "--user-dir", str(tmp_path / "a_task_of_ones_own"))[0] == 0
    assert called[0][0] == "validate"
