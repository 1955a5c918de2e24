"""The report of a hyperparameter study: tables of its trials, charts, and one page with all of it."""
