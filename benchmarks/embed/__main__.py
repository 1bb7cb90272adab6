"""`python -m benchmarks.embed FILE`: sentences.py has the options."""

from benchmarks.embed.sentences import main

if __name__ == "__main__":
    main()
