"""The worker's log as a page of plots: `python -m ops.report`."""
