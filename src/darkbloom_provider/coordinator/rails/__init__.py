"""What all ways of money in and out have in common. See `deposits` and `payouts`."""
