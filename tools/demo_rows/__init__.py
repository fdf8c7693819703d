"""What generates the rows of the demo; the package only holds the result."""
