"""Members of four families, as a package of their own."""
