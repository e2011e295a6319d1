"""Commands in a row, each run again only when what it depends on has changed."""
