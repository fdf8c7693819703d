"""`python -m lorakeet` is the `lorakeet` command: what torchrun needs to start it in several processes."""

from lorakeet.cli.main import main

if __name__ == "__main__":
    main()
