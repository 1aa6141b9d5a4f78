"""What each page shows, as functions of what was read: no clock, no ledger, no request."""
