"""GPT-2 as the papers have it, in plain NumPy; to be read first, in this order:

    config   the hyperparameters of a GPT-2, and the names and shapes of the tensors that follow from them
    ops      every operation with its gradient beside it: linear, gelu, layernorm, attention, cross entropy ...
    activations  what GPT-2's relatives have in the place of gelu
    op       how an operation gets its name, and how a faster form takes its place
    tape     running operations, and going back over them for gradients
    gpt2     the model: embeddings, blocks, logits, loss; and its initial weights
    cache    keys and values of what was read, for generating token after token
    adamw    the optimizer, clipping by the norm, the schedule of the learning rate
    rng      random numbers that have an address, so that a dropout mask can be drawn again

It imports NumPy and the standard library, and `errors` and `limits` for what is refused. With `SET pg_gpt2.fast = off`, ops,
attention over a cache and AdamW run by these lines; each form in `fast` is tested against the one here.
"""
