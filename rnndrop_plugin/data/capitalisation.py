"""The capitalisation of a word, as a feature."""

CAPITALISATIONS = ("lower", "upper", "title", "mixed", "none")


def capitalisation(word: str) -> str:
    """The capitalisation feature of a word (section 4.4: "capitalization features"; the paper does not say which).

    Returns:
        "none" without letters; "lower" without upper case; "upper" if all letters, two or more, are upper case;
        "title" if only the first character is; "mixed" otherwise.
    """
    upper = [character.isupper() for character in word if character.isalpha()]
    if not upper:
        return "none"
    if not any(upper):
        return "lower"
    if all(upper) and len(upper) > 1:
        return "upper"
    return "title" if word[0].isupper() and not any(upper[1:]) else "mixed"
