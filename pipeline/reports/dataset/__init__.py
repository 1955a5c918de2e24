"""The page on a prepared dataset that `agman prep` writes into it."""
