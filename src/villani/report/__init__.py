"""One self-contained HTML page per run. Reads records only; never measures."""

from villani.report.page import render, write_report

__all__ = ["render", "write_report"]
