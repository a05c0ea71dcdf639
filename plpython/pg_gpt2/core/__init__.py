"""GPT-2 as the paper has it: configuration, ops with their gradients, tape, model."""
