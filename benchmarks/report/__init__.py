"""What is shown: tables, plots, one page."""
