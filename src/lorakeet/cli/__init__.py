"""One file is one subcommand; no logic lives here."""
