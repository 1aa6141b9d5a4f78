"""Models on this machine: the catalogue and its prices, what is installed, and how to import one.

Nothing here loads a model; that is the engine's work. Importing this package loads no MLX.
"""
