"""The page on a prepared dataset that `agman prep` writes beside it; `pipeline.reports.dataset.page` makes it."""
