"""The demo: its model, its data set and its score, all inside the installed packages."""
