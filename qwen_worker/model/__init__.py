"""torch, diffusers and transformers live in this package and nowhere else."""

import transformers

# The libraries' own lines go through our log, not to their handlers; before diffusers, whose import warns.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_default_handler()
transformers.utils.logging.enable_propagation()
transformers.utils.logging.disable_progress_bar()

import diffusers  # noqa: E402

diffusers.utils.logging.disable_default_handler()
diffusers.utils.logging.enable_propagation()
diffusers.utils.logging.disable_progress_bar()
