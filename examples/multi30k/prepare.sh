#!/usr/bin/env bash
# Makes fairseq data of Multi30k, English to German, in joint pieces of both languages.
#
#     bash examples/multi30k/prepare.sh SOURCE DEST [PIECES]
#
# SOURCE has train, val and test_2016_flickr, each as .en and .de or as .en.gz and .de.gz. DEST gets the data, the
# model of the pieces (sentencepiece.model) and the test set's reference (test.de); PIECES is 4000 unless given.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ] || [[ "$1$2" == -* ]] || ! [[ "${3:-4000}" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash examples/multi30k/prepare.sh SOURCE DEST [PIECES]" >&2
    exit 2
fi
source=$1 dest=$2 pieces=${3:-4000}
for split in train val test_2016_flickr; do
    for language in en de; do
        file=$source/$split.$language
        [ -f "$file" ] || [ -f "$file.gz" ] || { echo "prepare.sh: $file: no such file, nor $file.gz" >&2 && exit 2; }
    done
done
[ ! -e "$dest" ] || { echo "prepare.sh: $dest is there already; remove it or choose another folder" >&2 && exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for split in train val test_2016_flickr; do
    for language in en de; do
        file=$source/$split.$language
        if [ -f "$file" ]; then cat "$file"; else gzip -dc "$file.gz"; fi >"$work/$split.$language"
    done
done

python - "$work" "$pieces" <<'PYTHON'
import sys

import sentencepiece

work, pieces = sys.argv[1], int(sys.argv[2])
languages = "en", "de"
try:
    sentencepiece.SentencePieceTrainer.train(
        input=[f"{work}/train.{language}" for language in languages],
        model_prefix=f"{work}/sentencepiece",
        model_type="bpe",
        vocab_size=pieces,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
except RuntimeError as error:
    print(f"prepare.sh: {pieces} pieces: {str(error).rpartition('] ')[2].strip()}", file=sys.stderr)
    sys.exit(2)
model = sentencepiece.SentencePieceProcessor(model_file=f"{work}/sentencepiece.model")
for split in "train", "val", "test_2016_flickr":
    for language in languages:
        with open(f"{work}/{split}.{language}", encoding="utf-8", newline="\n") as lines:
            encoded = model.encode([line.strip() for line in lines], out_type=str)
        with open(f"{work}/{split}.pieces.{language}", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(" ".join(sentence) + "\n" for sentence in encoded)
PYTHON

fairseq-preprocess --source-lang en --target-lang de --joined-dictionary --destdir "$work/data" \
    --trainpref "$work/train.pieces" --validpref "$work/val.pieces" --testpref "$work/test_2016_flickr.pieces"
cp "$work/sentencepiece.model" "$work/data"
cp "$work/test_2016_flickr.de" "$work/data/test.de"
mkdir -p "$(dirname -- "$dest")"
mv "$work/data" "$dest"
