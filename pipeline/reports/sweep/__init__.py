"""What a search leaves behind: tables of its trials, pictures, and one page to explore them.

`pipeline.reports.sweep.page` writes it, from the Optuna study alone. Nothing is imported here: the search itself
imports the names in `pipeline.reports.sweep.trials`.
"""
