"""`detkit inside`, from a checkout."""

from checkout import run

if __name__ == "__main__":
    run(__file__)
