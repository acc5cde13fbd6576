import pytest
from fairseq import options

PLUGIN = ("--user-dir", "rnndrop_plugin")


@pytest.fixture
def help_of(command, capsys):
    """The help that a command prints, its lines joined."""

    def help_of(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command(*arguments)
        assert not end.value.code
        return " ".join(capsys.readouterr().out.split())

    return help_of


def test_the_flags_of_what_is_chosen(help_of, unpatch):
    chosen = ("--arch", "lstm_rnndrop_ptb_word_256", "--optimizer", "rnndrop_rmsprop")
    text = help_of("train", *PLUGIN, *chosen, "--help")
    general, _, optimizer = text.partition("--optimizer rnndrop_rmsprop: ")
    optimizer, _, task = optimizer.partition("--task rnndrop_language_modeling: ")
    task, _, arch = task.partition("--arch lstm_rnndrop_ptb_word_256: ")
    assert "--max-epoch MAX_EPOCH" in general
    assert "--rmsprop-alpha RMSPROP_ALPHA" in optimizer
    assert "tokens of a row in a batch (default: 35) --variable-bptt" in task
    assert "--weight-dropout WEIGHT_DROPOUT dropout of single weights of the recurrent matrices" in arch
    assert "DropConnect, Wan et al. 2013; Merity et al. 2018 (default: 0.2)" in arch
    assert "the embeddings (default: 0.25) --decoder-dropout-out" in arch
    unpatch(options, "parse_args_and_arch")
    assert "--weight-dropout" not in help_of("train", *PLUGIN, *chosen, "--help")


def test_the_flags_of_an_evaluation(help_of):
    text = help_of("eval_lm", *PLUGIN, "--task", "rnndrop_language_modeling", "-h")
    assert "--neural-cache-theta" in text.partition("--task rnndrop_language_modeling: ")[2]
    assert "--task" in help_of("eval_lm", *PLUGIN, "-h")


def test_a_default_is_a_value_and_said_once(help_of):
    """fairseq's own help says some; ??? and ${...} stand for what is set elsewhere."""
    text = help_of("train", *PLUGIN, "--task", "rnndrop_tagging", "--arch", "transformer_lm", "--help")
    assert "(default: <save-dir>/checkpoint_last.pt --continue-once" in text
    assert "--decoder-layers DECODER_LAYERS num decoder layers (default: 6)" in text
    assert "clip threshold of gradients (default: 0.0)" in text
    assert "--sentence-avg normalize gradients by the number of sentences in a batch (default is" in text
    assert "(default: False)" not in text and "???" not in text and "${" not in text


def test_models_of_fairseq(help_of):
    text = help_of("train", *PLUGIN, "--task", "translation", "--arch", "lstm", "--help")
    assert "--source-lang" in text.partition("--task translation: ")[2].partition("--arch lstm: ")[0]
    assert "--encoder-bidirectional" in text.partition("--arch lstm: ")[2]
