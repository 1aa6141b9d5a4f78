"""The REST interface's own rules: how endpoints are declared, guarded, described and answered."""
