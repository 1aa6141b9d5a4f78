"""The command line: one file a command, parse → ask → render. No rule lives here."""
