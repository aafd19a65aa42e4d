"""`python -m llamacli` is `llamacli`."""

from llamacli.cli.app import main

if __name__ == "__main__":
    main()
