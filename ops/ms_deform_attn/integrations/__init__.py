"""Use of the operator in other packages."""
