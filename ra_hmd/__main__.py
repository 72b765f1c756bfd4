"""`python -m ra_hmd`: the command line `ra-hmd`."""

from ra_hmd.cli.app import app

if __name__ == "__main__":
    app()
