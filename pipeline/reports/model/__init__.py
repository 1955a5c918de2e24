"""`agman report`: one self-contained HTML page on a model.

`pipeline.reports.model.page` writes it. Nothing is imported here: `html` and `figures` serve the page on a prepared
dataset too, which does without Ray and MLflow.
"""
