"""`agman report`: one self-contained HTML page on a model."""

from pipeline.report.page import write_report

__all__ = ["write_report"]
