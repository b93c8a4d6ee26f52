"""What fails around the worker: storage, processes, deadlines. Nothing gets lost; run as `python -m faults`."""
