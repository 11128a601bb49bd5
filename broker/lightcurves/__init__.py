"""Light curves from tables: which column is which, which points are measurements, one light curve an object."""
