"""`agman serve`: a gallery over HTTP, with a page to look into it."""
