"""A secret that the processes of the tests' Ray have in their environment."""

SECRET = "sesame-0f3c-street"
PLANTED = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
