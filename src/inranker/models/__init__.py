"""Names of models to local folders."""
