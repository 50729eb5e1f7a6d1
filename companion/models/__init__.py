"""One file per paper, named after it; each reads top to bottom like the paper's method section."""
