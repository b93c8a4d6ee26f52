"""What a person runs to deploy the worker, and to see how it does. Not in the image."""
