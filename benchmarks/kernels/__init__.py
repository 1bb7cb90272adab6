"""Cases by sizes, the libraries that run them, and the processes that time them."""
