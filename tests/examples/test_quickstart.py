import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "quickstart.sh"


def quickstart(*args, cwd):
    return subprocess.run(["bash", str(SCRIPT), *args], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="would build .venv; run by scripts/test.sh")
def test_quickstart(tmp_path):
    """It ends with a test perplexity, a sentence and a picture; a unigram model has 193."""
    result = quickstart(cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    perplexity, sentence, picture = result.stdout.splitlines()[-3:]
    assert 20 < float(perplexity.removeprefix("test perplexity: ")) < 60
    assert re.fullmatch(r"a sentence: the( \S+)+", sentence)
    assert Path(picture.removeprefix("training curves: ")).read_bytes().startswith(b"\x89PNG")
    validations = re.findall(r"update \d+: validation perplexity ([\d.]+)", result.stdout)
    assert len(validations) == 8
    assert float(validations[-1]) < float(validations[0]) / 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "quickstart.sh: nowhere: no such folder\n"),
        (["--help"], "usage: bash examples/quickstart.sh [PTB_FOLDER]\n"),
        (["a", "b"], "usage: bash examples/quickstart.sh [PTB_FOLDER]\n"),
    ],
)
def test_bad_arguments(tmp_path, args, words):
    """Said before anything is built."""
    result = quickstart(*args, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", words)
