"""Inference: one thread owns everything of MLX and answers many requests in one batch.

The front (`engine.engine`) lives on the event loop and hands over plain values. Importing
`engine.requests` or `engine.engine` loads no MLX; the thread does, when it starts.
"""
