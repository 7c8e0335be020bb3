"""``python -m tokvid`` is the ``tokvid`` command."""

from tokvid.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
