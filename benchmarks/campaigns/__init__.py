"""Faults in large numbers: `python -m benchmarks.campaigns --help`.

`docs/reliability.md` has what they found, the counts, and what they do not show.

- `places`: the stores, and how the servers behind them are killed, hung and brought back.
- `worker`: a process that uses sessions as visitors do, and writes down what it was told.
- `history`: what workers wrote down, compared with what the store holds in the end.
- `adds`, `races`, `kills`, `pages`, `failover`, `moves`: one module for each campaign.
"""
