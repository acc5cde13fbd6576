import pytest
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask

from rnndrop_plugin.compat import embeddings


def test_fairseq_reads_embeddings_that_the_checkpoint_has(command, training, tmp_path, monkeypatch):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("1 4\nw3 1 1 1 1\n")
    command(*training, "--decoder-embed-path", vectors, "--max-update", 1, "--save-dir", tmp_path)
    vectors.unlink()
    paths = [str(tmp_path / "checkpoint_last.pt")]
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(paths)
    assert model.decoder.embed_tokens.weight[task.dictionary.index("w3")].tolist() == pytest.approx([1] * 4)
    monkeypatch.setattr(FairseqTask, "build_model", embeddings.upstream_build_model)
    with pytest.raises(ValueError, match="--decoder-embed-path"):
        checkpoint_utils.load_model_ensemble_and_task(paths)
