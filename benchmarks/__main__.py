"""`python -m benchmarks` is the command line of `benchmarks.cli`."""

from benchmarks.cli.app import app

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
