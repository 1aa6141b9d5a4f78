"""The money: double entry, reservations and their settlement, earnings, and the audit of it all."""
