"""Where everything is kept: SQLite or PostgreSQL, its schema, and how it is written and copied."""
