"""torch, diffusers and transformers live in this package and nowhere else."""
