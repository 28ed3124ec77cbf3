"""One module a measurement. Its `TITLE` and `COLUMNS` are for the tables; `sample` measures a contender once."""
