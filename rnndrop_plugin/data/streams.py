"""The streams of a data folder of sequences: the names of its sub-folders and, in a batch, of the words' features."""

WORD = "word"
CAPITALISATION = "capitalisation"
CHARACTERS = "characters"
TAG = "tag"  # of each word
LABEL = "label"  # of a sequence
