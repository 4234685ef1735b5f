"""Pure functions of arrays: no parameters, no config objects."""
