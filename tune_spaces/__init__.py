"""Search spaces: one module for each, with a define-by-run function `space(trial)`.

Each module also defines START, the recipe's setting as far as the space varies it, which is always trial 0: the
paper's of `margins`, the preset `strong`'s of the others. A space
suggests values for keys of pipeline.config.schema.TrainConfig and does nothing else. Modules import shared settings
from each other, so that a setting has the same range everywhere. Costs are amounts of arithmetic, counted for AG-MAN
at 224 pixels with 8 attributes, before early stopping.
"""
