"""`python -m stage2 CONFIG.yaml key=value …`, the same as `ra-hmd stage2`."""

import sys

from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from stage2.arguments import Stage2Arguments


def main(arguments: list[str]) -> int:
    """Run Stage 2; return the exit code (2: the user can mend it)."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            raise UserError("usage: python -m stage2 CONFIG.yaml [key=value …]")
        settings = load_yaml(Stage2Arguments, arguments[0], arguments[1:])
        from stage2.trainer import run_stage2  # after the settings: torch takes seconds to import

        run_stage2(settings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
