"""`python3 -m flanneld`, and the start of flanneld.pyz."""

from flanneld.cli import console

if __name__ == "__main__":
    console()
