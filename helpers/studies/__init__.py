"""`make full`: many runs that answer one question, each a row of its study's record."""
