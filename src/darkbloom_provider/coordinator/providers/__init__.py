"""The machines that are connected: their sessions, what they prove, and the work they have."""
