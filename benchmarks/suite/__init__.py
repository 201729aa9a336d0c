"""The benchmark suite: netloom and its peers on the same work, in turn.

`__main__` is the command (`./scripts/bench`); `plans` says what is measured, `turns` starts one process for each
measurement, `contender` is what runs in it, `libraries/` holds one file for each library, `figures` the arithmetic
and `page` the tables of docs/performance.md.
"""
