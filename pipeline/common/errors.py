"""What a job raises when the request was right and the work failed."""


class JobFailed(RuntimeError):
    """Answered in one line and exit code 1. The message says what failed, where, and what now."""
