"""What runs: command line, configuration, Ray Train, Ray Tune, MLflow, evaluation, report."""
