"""`python -m darkbloom_provider`: the same program as the `darkbloom` command."""

from darkbloom_provider.cli.main import main

if __name__ == "__main__":
    main()
