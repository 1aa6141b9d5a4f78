"""What is sold here, and for how much: models and prices that the operator changes at run time."""
