"""The page on a prepared dataset that `agman prep` writes beside it; `pipeline.prep_report.page` makes it."""
