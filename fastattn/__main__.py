"""`python -m fastattn` prints what `fastattn.show_config` does."""

from fastattn.config import show_config

if __name__ == "__main__":
    show_config()
