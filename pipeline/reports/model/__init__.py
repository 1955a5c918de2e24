"""`agman report`: one self-contained HTML page on a model, written by `pipeline.reports.model.page`."""
