"""A linear-chain conditional random field (Lafferty et al. 2001): its likelihood and its best path.

The score of a path y is the sum over its steps of ``emissions[t, y_t]`` and over neighbours of
``transitions[y_(t-1), y_t]``, and ``start[y_1]`` and ``end[y_T]``.
"""
