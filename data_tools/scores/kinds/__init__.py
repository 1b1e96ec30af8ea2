"""One module a kind of scorer. Its name is the kind's name on the command line; its `SCORER` is the class."""
