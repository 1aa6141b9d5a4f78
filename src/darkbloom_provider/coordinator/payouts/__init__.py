"""Money on its way out: onboarding, withdrawals, and the rails that carry them to a bank."""
