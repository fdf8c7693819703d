"""What people look at in a browser: the report of a run and the page of a check, each one file without network."""
