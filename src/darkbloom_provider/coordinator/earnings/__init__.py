"""Every view of money earned and spent. They only read."""
