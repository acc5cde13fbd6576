"""The names of streams of sequences: of a data folder's sub-folders and, in a batch, of the words' features."""

WORD = "word"
CAPITALISATION = "capitalisation"
CHARACTERS = "characters"
TAG = "tag"  # of each word
LABEL = "label"  # of a sequence
