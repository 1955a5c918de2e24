"""What may vary in a search: one module per space, each with a define-by-run function `space(trial)`."""
