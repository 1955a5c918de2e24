"""What a search leaves behind: tables of its trials, pictures, and one page to explore them.

`pipeline.sweep_report.page` writes it, from the Optuna study alone. Nothing is imported here: the search itself
imports the names in `pipeline.sweep_report.trials`.
"""
