"""The HTTP server and its search page."""
