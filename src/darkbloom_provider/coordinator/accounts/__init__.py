"""People and machines that have an account: how they sign in, what they hold, who brought them."""
