"""A linear-chain conditional random field (Lafferty et al. 2001): its likelihood and its best path.

The score of a path y is the sum of ``emissions[t, y_t]`` over its steps and of ``transitions[y_(t-1), y_t]`` over
neighbouring steps, plus ``start[y_1]`` and ``end[y_T]``.
"""
