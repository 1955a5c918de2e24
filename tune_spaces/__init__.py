"""What may vary in a search: one module per space, each with a define-by-run function `space(trial)`.

Beside it stands START, the paper's setting as far as the space varies it; it is always trial 0. A space suggests
values for keys of pipeline.config.schema.TrainConfig and does nothing else. Modules take what they share from each
other, so that a setting has one range everywhere. Costs are arithmetic, counted for AG-MAN at 224 pixels with 8
attributes, before early stopping.
"""
