"""The jobs that run: command line, configuration, Ray Train, Ray Tune, MLflow, evaluation, report."""
