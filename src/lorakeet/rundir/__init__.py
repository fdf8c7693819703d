"""All that lies in a run directory, read and written in one place."""
