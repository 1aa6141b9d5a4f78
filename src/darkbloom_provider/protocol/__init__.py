"""The wire, pure: no IO, no clock, no randomness that is not handed in."""
