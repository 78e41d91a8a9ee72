"""Detection on the workers of a Dask cluster; needs the package distributed."""
