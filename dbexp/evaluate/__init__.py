"""Stage 5, the metrics: every column in `columns`, pure formulas in `functional`, the record in `report`.

The backbones are imported where they are used, so that nothing else here loads a network library.
"""
