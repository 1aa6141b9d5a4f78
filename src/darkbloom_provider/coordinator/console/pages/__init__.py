"""The pages: each reads what it needs, has it turned into a view, and fills in its template."""
