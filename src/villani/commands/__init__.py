"""The commands of `villani`, one folder each."""
