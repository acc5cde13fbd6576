"""What is read from the logs of fairseq-train."""

from rnndrop_plugin.training_log import entries


def test_lines_of_other_kinds_are_passed_over(tmp_path):
    lines = ['2026-01-01 00:00:00 | INFO | tag | {"loss": "1"}', "2026-01-01 00:00:00 | INFO | tag | [1]"]
    lines += ["{" + '"a":{' * 100_000 + "}" * 100_001, "{cut short}"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    assert list(entries(tmp_path / "train.log")) == [{"loss": "1"}]
