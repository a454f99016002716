"""The shell of a page, and what pages and terminals are made of. Reads records only; never measures."""
