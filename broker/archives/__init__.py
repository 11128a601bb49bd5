"""Classification of whole archives: catalogues of light curves in many partitions, by LSDB and Dask."""
