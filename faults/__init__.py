"""Faults of everything around a job, and what became of the job: `make faults`."""
