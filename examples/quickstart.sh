#!/usr/bin/env bash
# Trains a small language model with update dropout, evaluates it and lets it write a sentence.
#
#     bash examples/quickstart.sh [PTB_FOLDER]
#
# The text is Python's own reference manual, or the Penn Treebank in PTB_FOLDER (see scripts/prepare_ptb.py --help).
# Everything it makes is in outputs/quickstart, anew each time.
set -euo pipefail

ptb=${1:-}
if [ $# -gt 1 ] || [[ "$ptb" == -* ]]; then
    echo "usage: bash examples/quickstart.sh [PTB_FOLDER]" >&2
    exit 2
elif [ -n "$ptb" ]; then
    [ -d "$ptb" ] || { echo "quickstart.sh: $ptb: no such folder" >&2 && exit 2; }
    ptb=$(CDPATH= cd -- "$ptb" && pwd)
fi
. "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/venv.sh"
PATH=$(dirname "$python"):$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a model this small gains nothing by more, and loses much on a busy machine
out=outputs/quickstart
plugin=(--user-dir rnndrop_plugin --task rnndrop_language_modeling)

# Runs a command that talks much; its words go to a file, and to the terminal if it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 5 "$log" >&2 && exit 1; }
}

rm -rf $out
mkdir -p $out

echo "== Preparing the text"
if [ -n "$ptb" ]; then
    python scripts/prepare_ptb.py --level word --source "$ptb" --dest $out/data
    schedule=(--max-epoch 1 --batch-size 32 --validate-interval-updates 400)
else
    python -c 'from pydoc_data.topics import topics; print(*topics.values(), sep="\n\n")' >$out/text.txt
    python scripts/prepare_text.py $out/text.txt --by paragraph --lower --dest $out/data
    schedule=(--max-epoch 8 --batch-size 16)
fi

echo "== Training (the whole log: $out/train.log)"
fairseq-train $out/data "${plugin[@]}" --arch lstm_rnndrop --cpu --seed 1 \
    --decoder-embed-dim 256 --decoder-hidden-size 256 --init-range 0.05 \
    --update-dropout 0.25 --decoder-dropout-in 0.2 --decoder-dropout-out 0.5 \
    --tokens-per-sample 35 "${schedule[@]}" --optimizer adam --lr 0.003 --clip-norm 1 \
    --save-dir $out/checkpoints --no-epoch-checkpoints --log-format json --log-interval 50 |
    tee $out/train.log |
    sed -un 's/.*"valid_ppl": "\([^"]*\)".*"valid_num_updates": "\([0-9]*\)".*/update \2: validation perplexity \1/p'
python scripts/plot_log.py $out/train.log --output $out/curves.png --title "lstm_rnndrop, update dropout 0.25"

echo "== Evaluating"
quietly $out/eval.log fairseq-eval-lm $out/data "${plugin[@]}" --path $out/checkpoints/checkpoint_best.pt --cpu

echo "== Writing"
quietly $out/interactive.log fairseq-interactive $out/data "${plugin[@]}" \
    --path $out/checkpoints/checkpoint_best.pt --cpu --seed 1 \
    --sampling --sampling-topk 20 --beam 1 --max-len-b 40 <<<"the"

echo
sed -n 's/.*Perplexity: \(.*\)/test perplexity: \1/p' $out/eval.log
sed -n 's/^H-0\t[^\t]*\t\(.*\)/a sentence: \1/p' $out/interactive.log
echo "training curves: $PWD/$out/curves.png"
