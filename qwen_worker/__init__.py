"""A RunPod Serverless worker that edits pictures with Qwen-Image-Edit."""

__version__ = "0.1.0"
