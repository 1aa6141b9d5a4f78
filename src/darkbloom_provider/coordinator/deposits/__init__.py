"""Deposits: credit that people buy. It can be spent and never withdrawn."""
