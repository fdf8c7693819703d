"""What `lorakeet check` finds out about a data set, and how it is shown."""
