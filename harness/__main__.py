"""`python -m harness` is the `harness` command; so torchrun starts it."""

from harness.cli import main

if __name__ == "__main__":
    main()
